package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
)

// ClosedError is why a read or write fails on a connection that this package
// closed: its peer is believed no longer. It is also a net.ErrClosed.
type ClosedError struct {
	ID  spiffeid.ID
	Err error
}

// Error implements error.
func (e *ClosedError) Error() string {
	if e.ID.IsZero() {
		return fmt.Sprintf("the connection was closed: %v", e.Err)
	}
	return fmt.Sprintf("the connection with %s was closed: %v", e.ID, e.Err)
}

// Unwrap returns the reason and net.ErrClosed.
func (e *ClosedError) Unwrap() []error { return []error{e.Err, net.ErrClosed} }

// conn is the connection below TLS.
type conn struct {
	net.Conn
	// in is what is read: during the handshake what its attempt looks at,
	// then Conn. Only the handshake reads before it has completed.
	in     net.Conn
	core   *core
	why    atomic.Pointer[ClosedError]
	closed atomic.Bool
	// expired: its peer's certificate has, since the handshake. core.live sets
	// it, so that requests need not look at a clock.
	expired atomic.Bool

	// Set before the handshake completes; core.live changes request.Path.
	request Request
	chain   []*x509.Certificate
	expires time.Time // the earliest of its path
	// Set when it completed.
	attempt *handshake.Attempt
	tls     *tls.Conn
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

func (c *conn) explain(err error) error {
	if why := c.why.Load(); why != nil {
		return why
	}
	return err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return c.Conn.Close()
	}
	c.core.live.remove(c)
	err := c.Conn.Close()
	if c.core.side == handshake.Client && c.tls != nil && c.why.Load() == nil {
		// In TLS 1.3 a server's refusal comes after the client's handshake,
		// as the error of a read, which sticks: hooks are told of it here,
		// whoever read. What is below is closed, so that this does not wait.
		if _, last := c.tls.Read(make([]byte, 1)); last != nil {
			c.attempt.Late(context.Background(), c.tls, last)
		}
	}
	return err
}

// NetConn returns what is below, as tls.Conn's does.
func (c *conn) NetConn() net.Conn { return c.Conn }

// SyscallConn implements syscall.Conn for those that set socket options.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// shut closes the connection for a reason. Only the first counts.
func (c *conn) shut(id spiffeid.ID, reason error) bool {
	first := c.why.CompareAndSwap(nil, &ClosedError{ID: id, Err: reason})
	c.Close()
	return first
}

// closeGently lets the peer read the alert that says why it was refused.
func (c *conn) closeGently() {
	handshake.Linger(c.Conn, 0)
	c.Close()
}

// ours finds our part of a connection. TLS that is spoken inside one of ours
// has a peer of its own, and is not ours.
func ours(c net.Conn) (*conn, bool) {
	var outermost *tls.Conn
	for range 8 {
		if own, ok := c.(*conn); ok {
			return own, own.tls != nil && (outermost == nil || outermost == own.tls)
		}
		if t, ok := c.(*tls.Conn); ok && outermost == nil {
			outermost = t
		}
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		c = below.NetConn()
	}
	return nil, false
}

// PeerOf returns the verified peer of a connection of this package; false for
// any other connection, and for servers that were verified by a public
// certificate, which have no SPIFFE ID.
func PeerOf(c net.Conn) (identity.Peer, bool) {
	own, ok := ours(c)
	if !ok || own.request.Peer.ID.IsZero() {
		return identity.Peer{}, false
	}
	return own.request.Peer, true
}

// Explain makes the error of a read or write on a dialled connection a
// *handshake.Error when it is the server's refusal of the handshake, which a
// client of TLS 1.3 learns from its first read; any other error, and that of
// any other connection, is returned as it is. Hooks are told of a refusal with
// or without it.
func Explain(ctx context.Context, c net.Conn, err error) error {
	own, ok := ours(c)
	if !ok || err == nil {
		return err
	}
	return own.attempt.Late(ctx, own.tls, err)
}
