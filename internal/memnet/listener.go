package memnet

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
)

// backlog bounds the connections that wait to be accepted.
const backlog = 128

type listener struct {
	n    *Network
	host string
	at   endpoint
	addr net.Addr

	mu      sync.Mutex // guards all below
	cond    *sync.Cond // of waiting and closed
	waiting []*conn
	closed  bool
}

func newListener(n *Network, host string, at endpoint, addr net.Addr) *listener {
	l := &listener{n: n, host: host, at: at, addr: addr}
	l.cond = sync.NewCond(&l.mu)
	return l
}

// offer waits for a place in the backlog.
func (l *listener) offer(ctx context.Context, c *conn) error {
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cond.Broadcast()
	})()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) >= backlog && !l.closed && ctx.Err() == nil {
		l.cond.Wait()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if l.closed {
		return os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	l.waiting = append(l.waiting, c)
	l.cond.Broadcast()
	return nil
}

// Accept returns the next connection, or net.ErrClosed.
func (l *listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	l.cond.Broadcast()
	return c, nil
}

// Close refuses further connections and resets those not yet accepted.
func (l *listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return &net.OpError{Op: "close", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
	}
	l.closed = true
	waiting := l.waiting
	l.waiting = nil
	l.cond.Broadcast()
	l.mu.Unlock()

	l.n.mu.Lock()
	delete(l.n.listeners, l.at)
	l.n.mu.Unlock()
	for _, c := range waiting {
		c.in.fail(syscall.ECONNRESET)
		c.out.fail(syscall.ECONNRESET)
		c.Close()
	}
	return nil
}

// Addr is where it listens, with the port it was given.
func (l *listener) Addr() net.Addr { return l.addr }
