package memnet

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window bounds the bytes on their way in one direction.
const window = 64 << 10

// conn is one end: it reads from in, the other end's out.
type conn struct {
	n             *Network
	host, peer    string
	local, remote net.Addr
	in, out       *half
	once          sync.Once
}

func (n *Network) connect(a, b string, local, remote net.Addr) (near, far *conn) {
	toFar, toNear := newHalf(n, a, b), newHalf(n, b, a)
	near = &conn{n: n, host: a, peer: b, local: local, remote: remote, in: toNear, out: toFar}
	far = &conn{n: n, host: b, peer: a, local: remote, remote: local, in: toFar, out: toNear}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near] = struct{}{}
	n.conns[far] = struct{}{}
	return near, far
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.opError("read", err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.opError("write", err)
}

// CloseWrite lets the other end read EOF; reading goes on.
func (c *conn) CloseWrite() error { return c.opError("close", c.out.closeWriter()) }

func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = nil
		_ = c.out.closeWriter()
		c.out.set(&c.out.writerGone)
		c.in.set(&c.in.readerGone)
		c.n.mu.Lock()
		delete(c.n.conns, c)
		c.n.mu.Unlock()
	})
	return c.opError("close", err)
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.opError("set", c.in.setDeadline(&c.in.reading, &c.in.readerGone, t))
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.opError("set", c.out.setDeadline(&c.out.writing, &c.out.writerGone, t))
}

func (c *conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// half is one direction.
type half struct {
	n        *Network
	from, to string

	mu         sync.Mutex // guards all below
	cond       *sync.Cond // of all below
	buf        []byte
	eof        bool  // no more will be written
	readerGone bool  // the reading end is closed
	writerGone bool  // the writing end is closed
	broken     error // both ends fail with it
	reading    deadline
	writing    deadline
}

func newHalf(n *Network, from, to string) *half {
	h := &half{n: n, from: from, to: to}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		cut := h.n.isCut(h.from, h.to)
		switch {
		case h.readerGone:
			return 0, net.ErrClosed
		case h.reading.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case h.broken != nil:
			return 0, os.NewSyscallError("read", h.broken)
		case cut:
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte) (written int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		cut := h.n.isCut(h.from, h.to)
		switch {
		case h.writerGone:
			return written, net.ErrClosed
		case h.writing.passed:
			return written, os.ErrDeadlineExceeded
		case h.broken != nil:
			return written, os.NewSyscallError("write", h.broken)
		case h.eof || h.readerGone && !cut:
			return written, os.NewSyscallError("write", syscall.EPIPE)
		case len(p) == 0:
			return written, nil
		case len(h.buf) < window:
			n := min(len(p), window-len(h.buf))
			h.buf = append(h.buf, p[:n]...)
			p, written = p[n:], written+n
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
}

func (h *half) closeWriter() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writerGone {
		return net.ErrClosed
	}
	h.eof = true
	h.cond.Broadcast()
	return nil
}

func (h *half) set(flag *bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*flag = true
	h.cond.Broadcast()
	if h.readerGone {
		h.reading.stop()
	}
	if h.writerGone {
		h.writing.stop()
	}
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken, h.buf = err, nil
	h.cond.Broadcast()
}

// wait waits at this half for a condition that a partition changes.
func (h *half) wait(ctx context.Context, until func() bool) error {
	defer context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cond.Broadcast()
	})()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !until() && ctx.Err() == nil {
		h.cond.Wait()
	}
	return ctx.Err()
}

type deadline struct {
	timer  *time.Timer
	passed bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (h *half) setDeadline(d *deadline, gone *bool, t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *gone {
		return net.ErrClosed
	}
	d.stop()
	d.passed = false
	if t.IsZero() {
		h.cond.Broadcast()
		return nil
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		h.cond.Broadcast()
		return nil
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.timer == timer {
			d.passed = true
			h.cond.Broadcast()
		}
	})
	d.timer = timer
	return nil
}
