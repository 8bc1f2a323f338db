// Package gate closes a listener without losing whom the kernel has let in
// already: closing a socket resets the connections in its queue, whose clients
// believe to be connected and may have sent a request.
package gate

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// How long nobody must come before the queue is believed empty. Where the kernel
// can be told to let nobody else in, this is for those that are half way in: one
// round trip of a far client.
const (
	lullOpen = 5 * time.Millisecond
	lullShut = 200 * time.Millisecond
)

// longest is how long a queue may take that fills as fast as it is emptied: one
// into which newcomers are let.
const longest = time.Second

// A Listener accepts as the one below, until Drain or Close.
type Listener struct {
	net.Listener
	deadlines interface{ SetDeadline(time.Time) error } // nil when there are none
	lull      time.Duration                             // set before draining
	longest   time.Duration
	until     time.Time // set before draining; zero where nobody else is let in
	draining  atomic.Bool

	begin  sync.Once
	once   sync.Once
	empty  chan struct{} // closed when the queue was empty and the socket is closed
	closed chan struct{} // by Close
	shut   sync.Once
	close  func() error // the socket, once
}

// New wraps inner.
func New(inner net.Listener) *Listener {
	l := &Listener{Listener: inner, longest: longest, empty: make(chan struct{}), closed: make(chan struct{}), close: sync.OnceValue(inner.Close)}
	l.deadlines, _ = inner.(interface{ SetDeadline(time.Time) error })
	return l
}

// Accept implements net.Listener. After Drain it goes on while somebody is in
// the queue, and then waits for Close.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		draining, since := l.draining.Load(), time.Now()
		if draining {
			if l.deadlines == nil || !l.until.IsZero() && since.After(l.until) || l.deadlines.SetDeadline(since.Add(l.lull)) != nil {
				return nil, l.over()
			}
		}
		c, err := l.Listener.Accept()
		if err == nil {
			return c, nil
		}
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if !l.draining.Load() || !late && queued(l.Listener) {
			return nil, err // e.g. no descriptor is free: who accepts tries again
		}
		// The deadline by which Drain wakes us proves nothing, nor one that had
		// passed when Accept came to look: then it does not look.
		if !late || draining && time.Since(since) >= l.lull && !queued(l.Listener) {
			return nil, l.over()
		}
	}
}

// over closes the socket, and waits: whoever accepts would take an error for
// the end of everything.
func (l *Listener) over() error {
	l.once.Do(func() {
		_ = l.close() // its queue is empty
		close(l.empty)
	})
	<-l.closed
	return net.ErrClosed
}

// Drain lets nobody else in and returns when all who were are accepted, and
// whoever accepts has come back for more. Somebody must be accepting. The error
// is ctx's.
func (l *Listener) Drain(ctx context.Context) error {
	l.begin.Do(func() {
		if refuseNewcomers(l.Listener) {
			l.lull = lullShut
		} else {
			l.until, l.lull = time.Now().Add(l.longest), lullOpen
		}
		l.draining.Store(true)
		if l.deadlines == nil || l.deadlines.SetDeadline(time.Now()) != nil {
			_ = l.close() // wakes Accept
		}
	})
	select {
	case <-l.empty:
		return nil
	case <-l.closed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.shut.Do(func() { close(l.closed) })
	return l.close()
}
