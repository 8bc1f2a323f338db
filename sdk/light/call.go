package light

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/legation-io/legation/sdk/secretmem"
)

// gRPC over HTTP/2, on the frames of conn.

// stream is one call.
type stream struct {
	id         uint32
	begun      bool // the response's headers came
	ended      bool
	consumed   int
	sendWindow int

	prefix  [5]byte // of the message that is being read
	have    int     // bytes of prefix
	message *secretmem.Buffer
	filled  int
}

// event is a message that came, or the end of a call.
type event struct {
	stream  *stream
	message *secretmem.Buffer // whoever gets it closes it
	err     error             // the call's end; *StatusError
}

// call begins a call with one message; more says that others follow. Nothing
// is sent before flush.
func (c *conn) call(path string, message []byte, more bool) (*stream, error) {
	s := &stream{id: c.nextID, sendWindow: c.peerWindow}
	c.nextID += 2
	c.streams[s.id] = s
	var block []byte
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"user-agent", "legation-light"},
		{"workload.spiffe.io", "true"}, // SPIFFE Workload Endpoint 3
	} {
		block = appendField(block, f[0], f[1])
	}
	c.out = appendFrame(c.out, frameHeaders, flagEndHeaders, s.id, block)
	return s, c.send(s, message, more)
}

// send sends one more message of a call.
func (c *conn) send(s *stream, message []byte, more bool) error {
	size := len(message) + 5
	if size > maxFrame || size > c.sendWindow || size > s.sendWindow {
		return protocolError("it lets us send %d bytes, and a request has %d", min(c.sendWindow, s.sendWindow), size)
	}
	c.sendWindow -= size
	s.sendWindow -= size
	framed := make([]byte, 5, size)
	binary.BigEndian.PutUint32(framed[1:], uint32(len(message)))
	flags := uint8(flagEndStream)
	if more {
		flags = 0
	}
	c.out = appendFrame(c.out, frameData, flags, s.id, append(framed, message...))
	return nil
}

// response takes headers or trailers of a call, gRPC over HTTP/2, "Responses".
func (c *conn) response(s *stream, fields map[string]string, end bool) {
	status := fields[":status"]
	switch {
	case !s.begun && len(status) == 3 && status[0] == '1' && !end: // informational
		return
	case !s.begun && status != "200":
		c.finish(s, &StatusError{CodeUnavailable, fmt.Sprintf("HTTP status %.20q; is this a gRPC server?", status)})
		return
	case !s.begun && !strings.HasPrefix(fields["content-type"], "application/grpc"):
		c.finish(s, &StatusError{CodeUnknown, fmt.Sprintf("content type %.100q is not gRPC's", fields["content-type"])})
		return
	}
	s.begun = true
	if !end {
		return
	}
	var code Code
	switch text := fields["grpc-status"]; {
	case text == "":
		c.finish(s, &StatusError{CodeUnknown, "the call ended without a status"})
		return
	default:
		if n, err := fmt.Sscanf(text, "%d", &code); n != 1 || err != nil || code < 0 {
			code = CodeUnknown
		}
	}
	c.finish(s, &StatusError{code, percentDecoded(fields["grpc-message"])})
}

// finish ends a call; err is never nil.
func (c *conn) finish(s *stream, err *StatusError) {
	if s.ended {
		return
	}
	s.ended = true
	if s.message != nil {
		_ = s.message.Close()
		s.message = nil
	}
	c.ready = append(c.ready, event{stream: s, err: err})
}

// messages takes length-prefixed messages out of data, gRPC over HTTP/2,
// "Length-Prefixed-Message".
func (c *conn) messages(s *stream, data []byte) error {
	for len(data) > 0 {
		if s.have < len(s.prefix) {
			n := copy(s.prefix[s.have:], data)
			s.have += n
			data = data[n:]
			if s.have < len(s.prefix) {
				return nil
			}
			size := binary.BigEndian.Uint32(s.prefix[1:])
			switch {
			case s.prefix[0] != 0:
				return protocolError("a compressed message, which was not asked for")
			case uint64(size) > uint64(c.maxMessage):
				return protocolError("a message of %d bytes, at most %d are taken (MaxMessage)", size, c.maxMessage)
			}
			if size == 0 {
				s.have = 0
				if err := c.queue(event{stream: s}); err != nil {
					return err
				}
				continue
			}
			var err error
			if s.message, err = secretmem.New(int(size)); err != nil {
				return err
			}
			s.filled = 0
		}
		into := s.message.Bytes()
		n := copy(into[s.filled:], data)
		s.filled += n
		data = data[n:]
		if s.filled == len(into) {
			e := event{stream: s, message: s.message}
			s.message, s.have = nil, 0
			if err := c.queue(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxReady bounds events that one frame may bring.
const maxReady = 64

func (c *conn) queue(e event) error {
	if len(c.ready) >= maxReady {
		if e.message != nil {
			_ = e.message.Close()
		}
		return protocolError("more than %d messages in one frame", maxReady)
	}
	c.ready = append(c.ready, e)
	return nil
}
