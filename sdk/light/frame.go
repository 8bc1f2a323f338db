package light

import (
	"encoding/binary"
	"fmt"
)

// Frame types, RFC 9113 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// Flags.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings, RFC 9113 6.5.2.
const (
	settingEnablePush        = 0x2
	settingInitialWindowSize = 0x4
	settingMaxFrameSize      = 0x5
	settingMaxHeaderListSize = 0x6
)

const (
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 3.4
	frameHeader   = 9                                  // bytes of a frame's header
	maxFrame      = 16 << 10                           // bytes of a frame's payload: the default, and what we accept
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
)

// frame is one frame as it was read; payload is in the read buffer.
type frame struct {
	typ, flags uint8
	stream     uint32
	payload    []byte
}

func (f *frame) has(flag uint8) bool { return f.flags&flag != 0 }

// frameLength reads a frame's header up to its length, RFC 9113 4.1.
func frameLength(header []byte) int {
	return int(header[0])<<16 | int(header[1])<<8 | int(header[2])
}

// splitFrame makes a frame of its header and payload together.
func splitFrame(raw []byte) frame {
	return frame{typ: raw[3], flags: raw[4], stream: binary.BigEndian.Uint32(raw[5:]) & maxWindow, payload: raw[frameHeader:]}
}

// unpadded takes padding off a DATA or HEADERS frame, RFC 9113 6.1.
func (f *frame) unpadded() ([]byte, error) {
	p := f.payload
	if !f.has(flagPadded) {
		return p, nil
	}
	if len(p) < 1 || int(p[0]) > len(p)-1 {
		return nil, protocolError("a frame is padded beyond its end (RFC 9113 6.1)")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func appendFrame(dst []byte, typ, flags uint8, stream uint32, payload []byte) []byte {
	dst = append(dst, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), typ, flags)
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return append(dst, payload...)
}

func appendSettings(dst []byte, pairs ...uint32) []byte {
	var payload []byte
	for n := 0; n+1 < len(pairs); n += 2 {
		payload = binary.BigEndian.AppendUint16(payload, uint16(pairs[n]))
		payload = binary.BigEndian.AppendUint32(payload, pairs[n+1])
	}
	return appendFrame(dst, frameSettings, 0, 0, payload)
}

func appendWindowUpdate(dst []byte, stream uint32, increment int) []byte {
	return appendFrame(dst, frameWindowUpdate, 0, stream, binary.BigEndian.AppendUint32(nil, uint32(increment)))
}

// appendField is a header field as a literal without indexing and without
// Huffman coding, RFC 7541 6.2.2: both ends need no state.
func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, 0)
	for _, s := range []string{name, value} {
		dst = append(appendLength(dst, len(s)), s...)
	}
	return dst
}

// appendLength is an integer with a 7-bit prefix, RFC 7541 5.1.
func appendLength(dst []byte, n int) []byte {
	if n < 127 {
		return append(dst, byte(n))
	}
	dst = append(dst, 127)
	for n -= 127; n >= 128; n >>= 7 {
		dst = append(dst, byte(n)|128)
	}
	return append(dst, byte(n))
}

// ProtocolError is a peer that does not speak HTTP/2 or gRPC as it should, or
// that wants more than it is given. The connection is over.
type ProtocolError struct{ What string }

// Error implements error.
func (e *ProtocolError) Error() string { return "the Workload API breaks the protocol: " + e.What }

func protocolError(format string, args ...any) error {
	return &ProtocolError{What: fmt.Sprintf(format, args...)}
}
