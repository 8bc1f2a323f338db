// Package handshake answers "why did this TLS handshake fail": it follows one
// handshake of crypto/tls, names the one cause of a failure, whose certificate
// it was and what the other side had said so far, and tells whoever asked.
package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"
)

// Cause is why a handshake failed, as data: a label of metrics and what
// callers switch on. Causes of chaincheck.Cause have the same spelling.
type Cause string

// Side is who noticed.
type Side string

// The sides.
const (
	Server Side = "server" // we accepted the connection
	Client Side = "client" // we dialled
)

// Error is a failed handshake.
type Error struct {
	Cause Cause
	Side  Side
	// Whose certificate is at fault: "peer", "own", or empty.
	Whose string
	// Remote and Local are the connection's ends.
	Remote, Local net.Addr
	// SNI is the server name that was asked for; may be empty.
	SNI string
	// Offered are the TLS versions that the client offered, as far as seen.
	Offered []uint16
	// Version and CipherSuite are what was agreed on; zero before that.
	Version, CipherSuite uint16
	// Chain is what the peer presented, as far as seen.
	Chain []*x509.Certificate
	// Anchor names the trust anchors that were tried, or the one that led to
	// the refusal.
	Anchor string
	// Err is what was found, e.g. a *chaincheck.Error.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("TLS handshake with %s failed: %s: %v", e.Remote, e.Cause, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Event is one handshake that ended.
type Event struct {
	Side          Side
	Remote, Local net.Addr
	SNI           string
	Start         time.Time
	Duration      time.Duration
	// State is the connection's when the handshake succeeded.
	State *tls.ConnectionState
	// Err is why it failed; nil when it did not.
	Err *Error
}

// A Hook is told of every handshake. It is called by the goroutine that did
// the handshake and should be quick.
type Hook func(context.Context, *Event)

// Attempt follows one handshake.
type Attempt struct {
	side  Side
	raw   net.Conn
	hooks []Hook
}

// Begin follows the handshake on raw.
func Begin(side Side, raw net.Conn, hooks []Hook) *Attempt {
	return &Attempt{side: side, raw: raw, hooks: hooks}
}

// Config returns a copy of base for this connection alone, whose callbacks
// tell the attempt what is seen; verify runs in VerifyConnection, always.
func (a *Attempt) Config(ctx context.Context, base *tls.Config, verify func(context.Context, tls.ConnectionState) error) *tls.Config {
	c := base.Clone()
	c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(ctx, cs) }
	return c
}

// Run performs the handshake on c, which was made with Config's result. The
// error is always an *Error.
func (a *Attempt) Run(ctx context.Context, c *tls.Conn) error {
	event := &Event{Side: a.side, Remote: a.raw.RemoteAddr(), Local: a.raw.LocalAddr(), Start: time.Now()}
	err := c.HandshakeContext(ctx)
	event.Duration = time.Since(event.Start)
	if err != nil {
		event.Err = &Error{Side: a.side, Remote: event.Remote, Local: event.Local, Err: err}
	} else {
		cs := c.ConnectionState()
		event.State = &cs
	}
	for _, hook := range a.hooks {
		hook(ctx, event)
	}
	if event.Err != nil {
		return event.Err
	}
	return nil
}
