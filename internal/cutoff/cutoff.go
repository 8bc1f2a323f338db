// Package cutoff ends what a listener accepted, all at once. A gRPC server
// that stops waits for each connection that has not finished its handshake,
// for as long as its connection timeout: whoever connects and says nothing
// would hold a shutdown up.
package cutoff

import (
	"net"
	"sync"
)

// Listener remembers what it accepted until that is closed.
type Listener struct {
	net.Listener

	mu   sync.Mutex // guards what follows
	open map[*conn]struct{}
	cut  bool
}

// New wraps a listener.
func New(l net.Listener) *Listener {
	return &Listener{Listener: l, open: map[*conn]struct{}{}}
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, from: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		raw.Close()
		return nil, net.ErrClosed
	}
	l.open[c] = struct{}{}
	return c, nil
}

// Cut closes the listener and every connection that is still open.
func (l *Listener) Cut() {
	l.Listener.Close()
	l.mu.Lock()
	l.cut = true
	open := make([]*conn, 0, len(l.open))
	for c := range l.open {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.Conn.Close() // whoever uses it closes c
	}
}

// conn is one that was accepted.
type conn struct {
	net.Conn
	from *Listener
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.from.mu.Lock()
	delete(c.from.open, c)
	c.from.mu.Unlock()
	return c.Conn.Close()
}

// NetConn is the connection as the kernel has it, for who asks about its peer.
func (c *conn) NetConn() net.Conn { return c.Conn }
