// Package mtls answers "how does a Go service speak mutual TLS that cannot be
// left unauthenticated": listeners and dialers for net/http, for raw
// connections and (by sdk/grpccreds) for gRPC, whose every connection has a
// peer with a verified SPIFFE ID that an Authorizer let in. What is presented
// and believed comes from an identity.Source (sdk/workloadapi, sdk/certfile,
// memory); chains are judged by sdk/chaincheck, failures explained by
// sdk/handshake.
//
// A server:
//
//	source, err := workloadapi.Open(ctx, workloadapi.Config{}) // or certfile.New, identity.NewMemory
//	...
//	l, err := mtls.Listen("tcp", ":8443", mtls.ServerConfig{
//		Source:    source,
//		Authorize: mtls.AuthorizeMemberOf(domain),
//		Hooks:     []handshake.Hook{handshake.LogHook(nil)}, // else failed handshakes are logged nowhere
//	})
//	...
//	err = l.Serve(&http.Server{Handler: mux}) // identity.PeerFromContext(r.Context())
//
// and a client:
//
//	d, err := mtls.NewDialer(mtls.ClientConfig{
//		Source:    source,
//		Authorize: mtls.AuthorizeID(server),
//	})
//	...
//	client := &http.Client{Transport: mtls.ExplainTransport(d.Transport())} // else a refusal is "remote error: tls: bad certificate"
//
// # What is always so
//
// Both sides verify the other's whole chain and SPIFFE ID in
// tls.Config.VerifyConnection, which runs in every handshake; there is no
// setting that skips it, and a configuration that does not say whom to accept
// is refused when it is made. TLS 1.3 (RFC 8446) with X25519MLKEM768
// preferred; what a Profile does not allow is refused on each connection by
// what was in fact agreed on. No session is ever resumed: tickets are neither
// sent nor used, since a resumed session would skip the peer's certificate and
// so its revocation. Certificates that live longer than 72 hours are refused
// unless the configuration allows them.
//
// # Connections that are already open
//
// When what the Source believes changes (roots, CRLs, denied identities) the
// peer of every open connection is judged again, and the connections of those
// that are believed no longer are closed, within milliseconds and nobody
// else's; reads and writes on them fail with a *ClosedError. Authorizers are
// asked again too; Recheck does so when their own data changed. Three rules:
// information that is merely missing (a CRL that is late) refuses new
// handshakes under chaincheck.Require and closes nothing that is open; a
// connection is not judged again by OCSP, only by CRLs and denials, which are
// pushed; and a connection may outlive its peer's certificate by ExpiryGrace,
// because a peer that has renewed goes on using it.
//
// Keeping track costs a request one indirect call per read and write.
package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
)

// Defaults of the configurations.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMaxLifetime      = 72 * time.Hour
	DefaultMaxHandshakes    = 1024
	DefaultExpiryGrace      = time.Hour
)

// ServerConfig is how connections are accepted. Source and Authorize must be
// set; the zero value of everything else is safe.
type ServerConfig struct {
	// Source has what is presented to clients and what they are verified
	// with. While it has nothing, handshakes fail at once with its error, an
	// *identity.NotReady.
	Source identity.Source
	// Authorize says which verified clients are let in.
	Authorize Authorizer
	// Certificate chooses another certificate to present, e.g. a public one
	// of sdk/acmecert or sdk/certfile, by the server name that was asked for.
	// Nil, or a nil certificate without an error, presents the Source's. How
	// clients are verified does not change.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Profile is which versions, suites and groups may be used.
	Profile Profile
	// Revocation says what missing revocation information means. The zero
	// value is chaincheck.Require: every CA in a client's chain needs a
	// current CRL. A trust domain that publishes none, as SPIRE's do not,
	// needs chaincheck.Prefer.
	Revocation chaincheck.Policy
	// OCSP fetches and remembers what responders say of clients' chains, shared
	// with others or not; nil reads CRLs only. It is not closed here.
	OCSP *chaincheck.OCSP
	// MaxLifetime refuses clients' certificates that live longer, notBefore to
	// notAfter. Zero is 72 hours, negative is no limit.
	MaxLifetime time.Duration
	// MaxDepth is the most intermediates in a chain, as in chaincheck.Params.
	MaxDepth int
	// ExpiryGrace is how long an open connection may outlive its peer's
	// certificate. Zero is one hour, negative is for ever. Servers of
	// sdk/mtls ask HTTP clients to reconnect as soon as it has expired.
	ExpiryGrace time.Duration
	// HandshakeTimeout ends a handshake that has not completed. Zero is ten
	// seconds; negative is refused.
	HandshakeTimeout time.Duration
	// MaxHandshakes bounds handshakes under way together with connections
	// that wait for Accept. When one more arrives the oldest handshake is
	// ended, so that silent connections cannot keep others out. Zero is 1,024.
	MaxHandshakes int
	// NextProtos are the application protocols on offer, best first (ALPN,
	// RFC 7301). Nil is none, and HTTPProtos for Listener.Serve.
	NextProtos []string
	// RequireALPN refuses clients that agree on none of NextProtos. A client
	// that names only others is refused in any case.
	RequireALPN bool
	// Hooks are told of every handshake that ended.
	Hooks []handshake.Hook
	// Now is wall time; nil is time.Now.
	Now func() time.Time
	// Logger is told of connections that are closed because their peer is no
	// longer believed (Warn), of errors of the listener (Error) and of failed
	// handshakes (Debug; Hooks have more). Nil is slog.Default().
	Logger *slog.Logger
}

// ClientConfig is how connections are dialled. Source and Authorize must be
// set; the zero value of everything else is safe.
type ClientConfig struct {
	// Source has what is presented to servers and what they are verified
	// with. While it has nothing, dialling fails at once with its error, an
	// *identity.NotReady.
	Source identity.Source
	// Authorize says which verified servers are the right ones.
	Authorize Authorizer
	// Profile is which versions, suites and groups may be used.
	Profile Profile
	// Revocation is as in ServerConfig, of servers' chains.
	Revocation chaincheck.Policy
	// OCSP is as in ServerConfig, of servers' chains; nil reads CRLs and the
	// answers that servers staple to their certificates.
	OCSP *chaincheck.OCSP
	// MaxLifetime is as in ServerConfig, of servers' certificates.
	MaxLifetime time.Duration
	// MaxDepth is as in ServerConfig.
	MaxDepth int
	// ExpiryGrace is as in ServerConfig.
	ExpiryGrace time.Duration
	// HandshakeTimeout is as in ServerConfig.
	HandshakeTimeout time.Duration
	// ServerName is asked for by SNI (RFC 6066 3) and is the host that
	// Authorize sees. Empty is the host that is dialled; IP addresses are not
	// sent.
	ServerName string
	// NextProtos are the application protocols to ask for, best first. Nil is
	// none for DialContext and HTTPProtos for Transport.
	NextProtos []string
	// RequireALPN refuses servers that agree on none of NextProtos.
	RequireALPN bool
	// Dial makes the connection below TLS. Nil is a net.Dialer's with a
	// timeout of ten seconds.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Hooks are told of every handshake that ended.
	Hooks []handshake.Hook
	// Now is wall time; nil is time.Now.
	Now func() time.Time
	// Logger is as in ServerConfig.
	Logger *slog.Logger
}

// HTTPProtos are the application protocols of net/http: HTTP/2 and HTTP/1.1
// (RFC 9113 3.2).
var HTTPProtos = []string{"h2", "http/1.1"}

func (c *ServerConfig) core() (*core, error) {
	k, err := newCore(handshake.Server, c.Source, c.Authorize, c.Profile, c.HandshakeTimeout, c.ExpiryGrace, c.NextProtos, c.RequireALPN)
	if err == nil && (c.Authorize.host != nil || c.Authorize.roots != nil) {
		err = fmt.Errorf("%s authorises servers by name, and clients have none", c.Authorize)
	}
	if err == nil && c.MaxHandshakes < 0 {
		err = fmt.Errorf("MaxHandshakes is %d; set it to 1 or more, or to 0 for %d", c.MaxHandshakes, DefaultMaxHandshakes)
	}
	if err != nil {
		return nil, fmt.Errorf("mtls.ServerConfig: %w", err)
	}
	k.certificate = c.Certificate
	k.pending.max = c.MaxHandshakes
	if k.pending.max == 0 {
		k.pending.max = DefaultMaxHandshakes
	}
	k.finish(chaincheck.Client, c.Revocation, c.OCSP, c.MaxLifetime, c.MaxDepth, c.Hooks, c.Now, c.Logger)
	return k, nil
}

func (c *ClientConfig) core() (*core, error) {
	k, err := newCore(handshake.Client, c.Source, c.Authorize, c.Profile, c.HandshakeTimeout, c.ExpiryGrace, c.NextProtos, c.RequireALPN)
	if err != nil {
		return nil, fmt.Errorf("mtls.ClientConfig: %w", err)
	}
	k.serverName = c.ServerName
	k.finish(chaincheck.Server, c.Revocation, c.OCSP, c.MaxLifetime, c.MaxDepth, c.Hooks, c.Now, c.Logger)
	return k, nil
}

func newCore(side handshake.Side, source identity.Source, who Authorizer, profile Profile, timeout, grace time.Duration, protos []string, requireALPN bool) (*core, error) {
	rules, err := profile.rules()
	switch {
	case source == nil:
		return nil, errors.New("no Source is set: nothing to present and nobody to believe; use sdk/workloadapi's Source, or identity.NewMemory")
	case who.check == nil && who.err == nil:
		return nil, errors.New("no Authorize is set, and letting in everybody is no default: set e.g. AuthorizeID, AuthorizeMemberOf or AuthorizePath")
	case who.err != nil:
		return nil, fmt.Errorf("the Authorizer: %w", who.err)
	case err != nil:
		return nil, err
	case timeout < 0:
		return nil, fmt.Errorf("HandshakeTimeout is %s: every handshake has an end; 0 is %s", timeout, DefaultHandshakeTimeout)
	case requireALPN && len(protos) == 0:
		return nil, errors.New("RequireALPN needs NextProtos")
	}
	k := &core{side: side, source: source, authorize: who, rules: rules, timeout: timeout, grace: grace, protos: slices.Clone(protos), requireALPN: requireALPN}
	if k.timeout == 0 {
		k.timeout = DefaultHandshakeTimeout
	}
	if k.grace == 0 {
		k.grace = DefaultExpiryGrace
	}
	return k, nil
}

func (k *core) finish(usage chaincheck.Usage, revocation chaincheck.Policy, ocsp *chaincheck.OCSP, lifetime time.Duration, depth int, hooks []handshake.Hook, now func() time.Time, log *slog.Logger) {
	if lifetime == 0 && k.authorize.roots == nil {
		lifetime = DefaultMaxLifetime
	}
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.Default()
	}
	k.usage, k.revocation, k.depth, k.now, k.log = usage, revocation, depth, now, log
	k.hooks = slices.Clone(hooks)
	k.verifier = chaincheck.NewVerifier(chaincheck.VerifierConfig{
		Usage: usage, Revocation: revocation, OCSP: ocsp, MaxLifetime: max(lifetime, 0), MaxDepth: depth, Now: now,
	})
	k.live.core = k
	k.live.conns = map[*conn]struct{}{}
	k.live.wake = make(chan struct{}, 1)
}
