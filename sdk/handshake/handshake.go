// Package handshake answers "why did this TLS handshake fail": it follows one
// handshake of crypto/tls, names the one cause of a failure, whose certificate
// it was and what the other side had said so far, and tells whoever asked.
//
// sdk/mtls and sdk/grpccreds use it for every connection, so that their errors
// are *Error and their hooks are called. With a plain tls.Config it is three
// lines: Begin, Config, Run. A server that leaves handshakes to net/http
// gets the same from ErrorLog, which reads what net/http writes to its log.
//
// It decides nothing: what a certificate must be is said by the verify
// function that is given to Config (sdk/chaincheck), what to do about a failure
// by the caller. Metrics and spans are hooks in packages of their own,
// promhandshake and otelhandshake, so that this one links neither.
//
// # When the peer refuses
//
// A peer that refuses our certificate says so with an alert (RFC 8446 6.2) of
// one byte. In TLS 1.3 a client has completed its handshake by then, and
// learns of it from its first read: Attempt.Late turns that error into an
// *Error too.
//
// # Cost
//
// A handshake that succeeds pays for one copy of its configuration, two
// callbacks and one read of the clock: no work is done for an explanation that
// nobody needs. BenchmarkHandshake compares with plain crypto/tls.
package handshake

import (
	"context"
	"crypto/tls"
	"net"
	"runtime/trace"
	"sync/atomic"
	"time"
)

// Side is which end of the connection we are, and so who noticed.
type Side string

// The sides.
const (
	Server Side = "server" // we accepted the connection
	Client Side = "client" // we dialled
)

// Event is one handshake that ended.
type Event struct {
	Side          Side
	Remote, Local net.Addr
	// SNI is the server name asked for, as the client wrote it; may be empty.
	SNI      string
	Start    time.Time
	Duration time.Duration
	// State is the connection's when the handshake succeeded.
	State *tls.ConnectionState
	// Err is why it failed; nil when it did not.
	Err *Error
	// Late says that the handshake had succeeded on this side, and the peer
	// refused it afterwards (Attempt.Late). It is the second event of its
	// connection.
	Late bool
}

// A Hook is told of every handshake. It is called by the goroutine that did
// the handshake and should be quick.
type Hook func(context.Context, *Event)

// Attempt follows one handshake. It is used once, by one goroutine at a time.
type Attempt struct {
	side  Side
	raw   net.Conn
	hooks []Hook

	base   *tls.Config
	ctx    context.Context // of the handshake, for verify
	verify func(context.Context, tls.ConnectionState) error
	start  time.Time
	late   atomic.Pointer[Error]

	seen seen
	tap  tap
}

// seen is what the callbacks noticed; written by the goroutine that runs the
// handshake.
type seen struct {
	hello    bool     // a ClientHello that parsed has come
	sni      string   // and said this
	versions []uint16 //
	alpn     []string //
	own      *tls.Certificate
	asked    bool     // the server asked for a certificate
	anchors  [][]byte // raw names of the CAs that the server says it accepts
	refused  error    // what verify returned
	state    *tls.ConnectionState
}

// Begin follows the handshake on raw. hooks are called when it ended; the
// slice is kept.
func Begin(side Side, raw net.Conn, hooks []Hook) *Attempt {
	a := &Attempt{side: side, raw: raw, hooks: hooks}
	a.tap.Conn = raw
	return a
}

// Conn is what to give to tls.Server or tls.Client in place of the connection.
// For a server it notices alerts that clients on OpenSSL (Python, curl) send
// without encryption when they refuse our certificate in TLS 1.3: crypto/tls
// cannot read those, and calls them a bad record. For a client it is the
// connection itself.
func (a *Attempt) Conn() net.Conn {
	if a.side == Server {
		return &a.tap
	}
	return a.raw
}

// Config returns a copy of base for this connection alone, whose callbacks
// tell the attempt what is seen. verify runs in VerifyConnection, always and
// after base's own; ctx is what it is given. A nil verify checks nothing more
// than base does.
func (a *Attempt) Config(ctx context.Context, base *tls.Config, verify func(context.Context, tls.ConnectionState) error) *tls.Config {
	a.base, a.ctx, a.verify = base, ctx, verify
	c := a.follow(base)
	if a.side == Server {
		c.GetConfigForClient = a.configForClient
	}
	return c
}

// follow returns a copy of c that reports.
func (a *Attempt) follow(base *tls.Config) *tls.Config {
	c := base.Clone()
	if v := base.VerifyConnection; v != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := v(cs); err != nil {
				return a.refuse(&cs, err)
			}
			return a.verifyConnection(cs)
		}
	} else {
		c.VerifyConnection = a.verifyConnection
	}
	if get := base.GetCertificate; get != nil && a.side == Server {
		c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			own, err := get(hello)
			a.seen.own = own
			return own, err
		}
	}
	if a.side == Client {
		// Also without a callback of base's: what the server asked for
		// explains what it refuses.
		c.GetClientCertificate = a.clientCertificate
	}
	return c
}

func (a *Attempt) configForClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	a.seen.hello = true
	a.seen.sni, a.seen.versions, a.seen.alpn = hello.ServerName, hello.SupportedVersions, hello.SupportedProtos
	if a.base.GetConfigForClient == nil {
		return nil, nil
	}
	c, err := a.base.GetConfigForClient(hello)
	if err != nil || c == nil {
		return nil, err
	}
	a.base = c
	return a.follow(c), nil
}

// clientCertificate chooses as crypto/tls does.
func (a *Attempt) clientCertificate(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	a.seen.asked, a.seen.anchors = true, request.AcceptableCAs
	if get := a.base.GetClientCertificate; get != nil {
		own, err := get(request)
		a.seen.own = own
		return own, err
	}
	for n := range a.base.Certificates {
		own := &a.base.Certificates[n]
		if request.SupportsCertificate(own) == nil {
			a.seen.own = own
			return own, nil
		}
	}
	return new(tls.Certificate), nil
}

func (a *Attempt) verifyConnection(cs tls.ConnectionState) error {
	if a.verify == nil {
		return nil
	}
	if err := a.verify(a.ctx, cs); err != nil {
		return a.refuse(&cs, err)
	}
	return nil
}

// refuse notes what our own verification said.
func (a *Attempt) refuse(cs *tls.ConnectionState, err error) error {
	state := *cs
	a.seen.refused, a.seen.state = err, &state
	return err
}

// Run performs the handshake on c, which was made with Config's result, and
// calls the hooks. The error is always an *Error. Without a deadline on ctx or
// on the connection it may take for ever.
//
// The handshake is a region of runtime/trace, "tls handshake server" or "tls
// handshake client"; the cause of a failure is logged there too.
func (a *Attempt) Run(ctx context.Context, c *tls.Conn) error {
	a.start = time.Now()
	region := trace.StartRegion(ctx, regionName(a.side))
	err := c.HandshakeContext(ctx)
	a.tap.done = true
	region.End()
	if err != nil {
		return a.failed(ctx, a.diagnose(err, c.ConnectionState()), false)
	}
	if len(a.hooks) == 0 {
		return nil
	}
	cs := c.ConnectionState()
	a.tell(ctx, &Event{SNI: cs.ServerName, State: &cs})
	return nil
}

// Fail is Run's end for a caller that gives up before or beside crypto/tls:
// it makes err an *Error, calls the hooks and returns it. Use it when there is
// no identity to start a handshake with.
func (a *Attempt) Fail(ctx context.Context, err error) error {
	if a.start.IsZero() {
		a.start = time.Now()
	}
	return a.failed(ctx, a.diagnose(err, tls.ConnectionState{}), false)
}

// Late looks at the error of a read or write after Run returned nil. When it
// is the peer's refusal of the handshake (which a client of TLS 1.3 learns only
// then), the result is an *Error, and the hooks are called once per connection;
// any other error is returned as it is. It may be called by many goroutines.
func (a *Attempt) Late(ctx context.Context, c *tls.Conn, err error) error {
	alert, ok := remoteAlert(err)
	if !ok || alert == alertUserCanceled {
		return err
	}
	e := a.diagnose(err, c.ConnectionState())
	if !a.late.CompareAndSwap(nil, e) {
		return a.late.Load()
	}
	return a.failed(ctx, e, true)
}

// Refused is what Late made of the peer's refusal; nil while it made nothing.
func (a *Attempt) Refused() *Error { return a.late.Load() }

func (a *Attempt) failed(ctx context.Context, e *Error, late bool) error {
	if trace.IsEnabled() {
		trace.Log(ctx, "tls handshake failed", string(e.Cause))
	}
	if len(a.hooks) > 0 {
		a.tell(ctx, &Event{SNI: e.SNI, Err: e, Late: late})
	}
	return e
}

func (a *Attempt) tell(ctx context.Context, event *Event) {
	event.Side, event.Start, event.Duration = a.side, a.start, time.Since(a.start)
	event.Remote, event.Local = a.raw.RemoteAddr(), a.raw.LocalAddr()
	for _, hook := range a.hooks {
		hook(ctx, event)
	}
}

func regionName(side Side) string {
	if side == Server {
		return "tls handshake server"
	}
	return "tls handshake client"
}
