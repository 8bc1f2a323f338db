package light

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/legation-io/legation/sdk/secretmem"
)

// Bounds on what a peer may send.
const (
	maxHeaderBlock = 64 << 10 // bytes of one header list, compressed
	maxHeaderText  = 32 << 10 // bytes of one header list, decoded
	readBuffer     = 2 * (maxFrame + frameHeader)
	// connWindow is what may be under way to us on all streams together.
	connWindow   = 1 << 20
	writeTimeout = 5 * time.Second
)

// conn is the client's end of an HTTP/2 connection that carries a few gRPC
// calls. One goroutine owns it: nothing happens but in its calls, and whoever
// waits in next is woken by the read deadline of the connection underneath.
// Read buffers and messages are locked memory, and wiped.
type conn struct {
	rw         io.ReadWriter
	maxMessage int

	in         *secretmem.Buffer
	buf        []byte // in's bytes
	begin, end int    // of what was read and not taken yet

	out     []byte // not written yet
	streams map[uint32]*stream
	nextID  uint32
	ready   []event // not handed out yet
	fields  *hpack.Decoder
	open    *headerBlock // without its end yet: only CONTINUATION may follow
	settled bool         // the peer's SETTINGS came

	consumed   int // on the connection, not returned to the peer yet
	sendWindow int // what we may still send
	peerWindow int // what a new stream of ours may send
}

type headerBlock struct {
	stream    uint32
	endStream bool
	raw       []byte
}

func newConn(rw io.ReadWriter, maxMessage int) (*conn, error) {
	in, err := secretmem.New(readBuffer)
	if err != nil {
		return nil, err
	}
	c := &conn{
		rw: rw, maxMessage: maxMessage, in: in, buf: in.Bytes(), streams: map[uint32]*stream{}, nextID: 1,
		fields: hpack.NewDecoder(4096, nil), sendWindow: defaultWindow, peerWindow: defaultWindow,
	}
	c.fields.SetMaxStringLength(maxHeaderText)
	c.out = append(c.out, preface...)
	c.out = appendSettings(c.out, settingEnablePush, 0, settingInitialWindowSize, connWindow, settingMaxFrameSize, maxFrame, settingMaxHeaderListSize, maxHeaderText)
	c.out = appendWindowUpdate(c.out, 0, connWindow-defaultWindow)
	return c, nil
}

// close wipes what is still here. It does not close the connection underneath.
func (c *conn) close() {
	for _, s := range c.streams {
		if s.message != nil {
			_ = s.message.Close()
			s.message = nil
		}
	}
	for _, e := range c.ready {
		if e.message != nil {
			_ = e.message.Close()
		}
	}
	c.ready, c.buf = nil, nil
	_ = c.in.Close()
}

// flush writes what is to be sent.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if nc, ok := c.rw.(net.Conn); ok {
		_ = nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	_, err := c.rw.Write(c.out)
	c.out = c.out[:0]
	return err
}

// next returns the next event. The error os.ErrDeadlineExceeded changes
// nothing: next may be called again. Any other is the end of the connection.
func (c *conn) next() (event, error) {
	for {
		if len(c.ready) > 0 {
			e := c.ready[0]
			c.ready = c.ready[1:]
			if e.err != nil {
				delete(c.streams, e.stream.id)
			}
			return e, nil
		}
		if err := c.flush(); err != nil {
			return event{}, err
		}
		f, err := c.read()
		if err != nil {
			return event{}, err
		}
		err = c.handle(&f)
		clear(f.payload)
		if err != nil {
			return event{}, err
		}
	}
}

// read takes one frame out of the read buffer.
func (c *conn) read() (frame, error) {
	for {
		have := c.buf[c.begin:c.end]
		if len(have) >= frameHeader {
			size := frameLength(have)
			if size > maxFrame {
				return frame{}, protocolError("a frame of %d bytes, %d were agreed on (RFC 9113 4.2)", size, maxFrame)
			}
			if size += frameHeader; len(have) >= size {
				c.begin += size
				return splitFrame(have[:size]), nil
			}
		}
		if c.begin > 0 {
			n := copy(c.buf, have)
			clear(c.buf[n:c.end])
			c.begin, c.end = 0, n
		}
		n, err := c.rw.Read(c.buf[c.end:])
		c.end += n
		switch {
		case n > 0:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return frame{}, os.ErrDeadlineExceeded
		case err == nil:
			return frame{}, io.ErrNoProgress
		case errors.Is(err, io.EOF):
			return frame{}, errGone
		default:
			return frame{}, err
		}
	}
}

var errGone = errors.New("the Workload API closed the connection")

func (c *conn) handle(f *frame) error {
	if !c.settled && f.typ != frameSettings {
		return protocolError("it does not begin with SETTINGS (RFC 9113 3.4); is this a gRPC server?")
	}
	if c.open != nil && (f.typ != frameContinuation || f.stream != c.open.stream) {
		return protocolError("headers are interrupted (RFC 9113 6.10)")
	}
	switch f.typ {
	case frameData:
		return c.data(f)
	case frameHeaders:
		return c.headers(f)
	case frameContinuation:
		if c.open == nil {
			return protocolError("a continuation of no headers (RFC 9113 6.10)")
		}
		return c.block(f.payload, f.has(flagEndHeaders))
	case frameReset:
		if len(f.payload) != 4 || f.stream == 0 {
			return protocolError("a malformed RST_STREAM (RFC 9113 6.4)")
		}
		if s := c.streams[f.stream]; s != nil {
			code := binary.BigEndian.Uint32(f.payload)
			c.finish(s, &StatusError{resetCode(code), fmt.Sprintf("the stream was reset with HTTP/2 error %d", code)})
		}
	case frameSettings:
		return c.settings(f)
	case framePushPromise:
		return protocolError("a push, which was forbidden (RFC 9113 6.6)")
	case framePing:
		if len(f.payload) != 8 || f.stream != 0 {
			return protocolError("a malformed PING (RFC 9113 6.7)")
		}
		if !f.has(flagAck) {
			c.out = appendFrame(c.out, framePing, flagAck, 0, f.payload)
		}
	case frameGoAway:
		return c.goAway(f)
	case frameWindowUpdate:
		return c.windowUpdate(f)
	}
	return nil // PRIORITY, and what is not known, is ignored (RFC 9113 5.5)
}

func (c *conn) goAway(f *frame) error {
	if len(f.payload) < 8 || f.stream != 0 {
		return protocolError("a malformed GOAWAY (RFC 9113 6.8)")
	}
	last, code := binary.BigEndian.Uint32(f.payload)&maxWindow, binary.BigEndian.Uint32(f.payload[4:])
	for id, s := range c.streams {
		// What it still works on may end in peace; an error ends all.
		if id > last || code != 0 {
			c.finish(s, &StatusError{CodeUnavailable, fmt.Sprintf("the Workload API goes away (HTTP/2 error %d): %.200q", code, f.payload[8:])})
		}
	}
	return nil
}

func (c *conn) settings(f *frame) error {
	if f.stream != 0 || len(f.payload)%6 != 0 || f.has(flagAck) && len(f.payload) > 0 {
		return protocolError("malformed SETTINGS (RFC 9113 6.5)")
	}
	c.settled = true
	if f.has(flagAck) {
		return nil
	}
	for p := f.payload; len(p) > 0; p = p[6:] {
		if value := binary.BigEndian.Uint32(p[2:]); binary.BigEndian.Uint16(p) == settingInitialWindowSize {
			if value > maxWindow {
				return protocolError("an initial window of %d bytes (RFC 9113 6.5.2)", value)
			}
			for _, s := range c.streams { // may become negative, RFC 9113 6.9.2
				s.sendWindow += int(value) - c.peerWindow
			}
			c.peerWindow = int(value)
		}
	}
	c.out = appendFrame(c.out, frameSettings, flagAck, 0, nil)
	return nil
}

func (c *conn) windowUpdate(f *frame) error {
	if len(f.payload) != 4 {
		return protocolError("a malformed WINDOW_UPDATE (RFC 9113 6.9)")
	}
	more := int(binary.BigEndian.Uint32(f.payload) & maxWindow)
	window := &c.sendWindow
	if f.stream != 0 {
		s := c.streams[f.stream]
		if s == nil {
			return nil
		}
		window = &s.sendWindow
	}
	if more == 0 || *window > maxWindow-more {
		return protocolError("a window that grows by %d to more than can be (RFC 9113 6.9.1)", more)
	}
	*window += more
	return nil
}

func (c *conn) headers(f *frame) error {
	block, err := f.unpadded()
	if err != nil {
		return err
	}
	if f.has(flagPriority) {
		if len(block) < 5 {
			return protocolError("headers end within their priority (RFC 9113 6.2)")
		}
		block = block[5:]
	}
	if f.stream == 0 {
		return protocolError("headers of no stream (RFC 9113 6.2)")
	}
	c.open = &headerBlock{stream: f.stream, endStream: f.has(flagEndStream)}
	return c.block(block, f.has(flagEndHeaders))
}

// block collects header fields; the last piece is decoded with all before.
func (c *conn) block(piece []byte, last bool) error {
	b := c.open
	if len(b.raw)+len(piece) > maxHeaderBlock {
		return protocolError("headers of more than %d bytes", maxHeaderBlock)
	}
	b.raw = append(b.raw, piece...)
	if !last {
		return nil
	}
	c.open = nil
	fields, size := map[string]string{}, 0
	tooLong := false
	c.fields.SetEmitFunc(func(f hpack.HeaderField) {
		if size += int(f.Size()); size > maxHeaderText {
			tooLong = true
			return
		}
		switch f.Name {
		case ":status", "content-type", "grpc-status", "grpc-message":
			fields[f.Name] = f.Value
		}
	})
	// Also for streams that are over: the table is the connection's.
	if _, err := c.fields.Write(b.raw); err != nil {
		return protocolError("headers cannot be decoded: %v", err)
	}
	if err := c.fields.Close(); err != nil {
		return protocolError("headers cannot be decoded: %v", err)
	}
	if tooLong {
		return protocolError("headers of more than %d bytes", maxHeaderText)
	}
	if s := c.streams[b.stream]; s != nil && !s.ended {
		c.response(s, fields, b.endStream)
	}
	return nil
}

func (c *conn) data(f *frame) error {
	if f.stream == 0 {
		return protocolError("data of no stream (RFC 9113 6.1)")
	}
	// All data is consumed as it comes, so that windows are returned before
	// they are used up. Padding counts, RFC 9113 6.9.1.
	size := len(f.payload)
	if c.consumed += size; c.consumed >= connWindow/4 {
		c.out = appendWindowUpdate(c.out, 0, c.consumed)
		c.consumed = 0
	}
	payload, err := f.unpadded()
	if err != nil {
		return err
	}
	s := c.streams[f.stream]
	if s == nil || s.ended {
		if f.stream%2 == 0 || f.stream >= c.nextID {
			return protocolError("data of a stream that was never opened (RFC 9113 5.1)")
		}
		return nil
	}
	if !s.begun {
		return protocolError("data before headers (RFC 9113 8.1)")
	}
	if s.consumed += size; s.consumed >= connWindow/4 && !f.has(flagEndStream) {
		c.out = appendWindowUpdate(c.out, s.id, s.consumed)
		s.consumed = 0
	}
	if err := c.messages(s, payload); err != nil {
		return err
	}
	if f.has(flagEndStream) {
		c.finish(s, &StatusError{CodeUnknown, "the call ended without a status"})
	}
	return nil
}
