package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
)

// core is one side: what servers and clients have in common.
type core struct {
	side        handshake.Side
	source      identity.Source
	authorize   Authorizer
	rules       *rules
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	serverName  string
	protos      []string
	requireALPN bool
	timeout     time.Duration
	grace       time.Duration
	usage       chaincheck.Usage
	revocation  chaincheck.Policy
	depth       int
	verifier    *chaincheck.Verifier
	hooks       []handshake.Hook
	now         func() time.Time
	log         *slog.Logger

	base    atomic.Pointer[base] // of the newest snapshot that was seen
	pending pending
	live    live
}

// base is the configuration of all connections under one snapshot.
type base struct {
	snapshot *identity.Snapshot
	config   *tls.Config
	http     *tls.Config // for net/http: the same, or HTTPProtos when none were named
}

var errNoCertificate = errors.New("the source of identity has nothing to present, only roots to verify others with")

// current returns the snapshot and its configuration. Both are used for the
// whole of one handshake: what is presented and who is believed belong
// together.
func (k *core) current() (*base, error) {
	snapshot, _, err := k.source.Current()
	if err != nil {
		return nil, err
	}
	if b := k.base.Load(); b != nil && b.snapshot == snapshot {
		return b, nil
	}
	b := &base{snapshot: snapshot, config: k.config(snapshot, k.protos)}
	if b.http = b.config; len(k.protos) == 0 {
		b.http = k.config(snapshot, HTTPProtos)
	}
	k.base.Store(b)
	return b, nil
}

// config never lets crypto/tls decide about the peer: every check is in
// VerifyConnection, which handshake.Attempt adds and which runs in every
// handshake.
func (k *core) config(snapshot *identity.Snapshot, protos []string) *tls.Config {
	c := &tls.Config{
		MinVersion:             k.rules.min,
		CipherSuites:           k.rules.suites12,
		CurvePreferences:       k.rules.groups,
		NextProtos:             protos,
		SessionTicketsDisabled: true,
		Time:                   k.now,
	}
	if k.side == handshake.Client {
		c.InsecureSkipVerify = true // names are SPIFFE IDs, which crypto/tls does not know
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if snapshot.Certificate == nil && k.authorize.roots != nil {
				return &tls.Certificate{}, nil // a public server that asks, and may do without
			}
			if snapshot.Certificate == nil {
				return nil, notReady(errNoCertificate)
			}
			return snapshot.Certificate, nil
		}
		return c
	}
	c.ClientAuth = tls.RequireAnyClientCert
	if len(protos) > 0 {
		c.GetConfigForClient = refuseOtherProtocols(c)
	}
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if k.certificate != nil {
			if own, err := k.certificate(hello); own != nil || err != nil {
				return own, err
			}
		}
		if snapshot.Certificate == nil {
			return nil, notReady(errNoCertificate)
		}
		return snapshot.Certificate, nil
	}
	return c
}

// refuseOtherProtocols closes an exception of crypto/tls: a client that wants
// only HTTP/1.1 is served without a protocol by a server that has HTTP/2, where
// RFC 7301 3.2 wants no_application_protocol.
func refuseOtherProtocols(c *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 0 {
			return nil, nil
		}
		for _, p := range hello.SupportedProtos {
			if slices.Contains(c.NextProtos, p) {
				return nil, nil
			}
		}
		none := c.Clone()
		none.NextProtos, none.GetConfigForClient = []string{""}, nil // the one name that no client can ask for (RFC 7301 3.1)
		return none, nil
	}
}

// unready answers a client's hello with the reason why there is nothing to
// say, so that both ends know at once.
func (k *core) unready(why error) *base {
	c := &tls.Config{
		MinVersion: k.rules.min, SessionTicketsDisabled: true, ClientAuth: tls.RequireAnyClientCert,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, why },
		GetCertificate:     func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, why },
	}
	return &base{config: c, http: c}
}

// handshake performs one on raw, which it owns from then on; http says that
// net/http will speak on it. The error is always a *handshake.Error.
func (k *core) handshake(ctx context.Context, raw net.Conn, host string, http bool) (*tls.Conn, error) {
	attempt := handshake.Begin(k.side, raw, k.hooks)
	c := &conn{Conn: raw, in: attempt.Conn(), core: k}
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	place, err := k.pending.begin(ctx, c)
	if err != nil {
		c.Close()
		return nil, attempt.Fail(ctx, err)
	}
	defer k.pending.leave(place)
	b, err := k.current()
	if err != nil {
		if k.side == handshake.Client {
			c.Close()
			return nil, attempt.Fail(ctx, notReady(err))
		}
		b = k.unready(notReady(err))
	}
	of := b.config
	if http {
		of = b.http
	}
	asked := k.live.rechecks.Load()
	config := attempt.Config(ctx, of, func(ctx context.Context, cs tls.ConnectionState) error {
		return k.verify(ctx, c, b.snapshot, host, cs)
	})
	var secured *tls.Conn
	if k.side == handshake.Client {
		config.ServerName = sni(host)
		secured = tls.Client(c, config)
	} else {
		secured = tls.Server(c, config)
	}
	if err := attempt.Run(ctx, secured); err != nil {
		k.log.Debug("TLS handshake failed", "error", err)
		if ctx.Err() == nil {
			c.closeGently()
		} else {
			c.Close()
		}
		return nil, err
	}
	if c.chain == nil { // crypto/tls calls VerifyConnection always; should it cease to
		c.Close()
		return nil, attempt.Fail(ctx, errUnverified)
	}
	if k.rules.min < tls.VersionTLS13 {
		cs := secured.ConnectionState()
		if err := k.rules.check(&cs); err != nil {
			c.Close()
			return nil, attempt.Fail(ctx, k.refusal(err, b.snapshot.Trust))
		}
	}
	c.in, c.attempt, c.tls = raw, attempt, secured
	if err := k.live.add(c, b.snapshot.Trust, asked); err != nil {
		c.shut(c.request.Peer.ID, err)
		return nil, attempt.Fail(ctx, k.refusal(err, b.snapshot.Trust))
	}
	return secured, nil
}

var errUnverified = errors.New("the handshake ended without the peer being verified")

// notReady gives any error of a Source its cause.
func notReady(err error) error {
	return &handshake.Refusal{Cause: handshake.NotReady, Whose: handshake.Own, Err: err}
}

// sni is what a client asks for: names, not addresses (RFC 6066 3).
func sni(host string) string {
	if net.ParseIP(host) != nil {
		return ""
	}
	return strings.TrimSuffix(host, ".")
}

// verify judges the peer of one handshake and keeps what it found in c.
func (k *core) verify(ctx context.Context, c *conn, snapshot *identity.Snapshot, host string, cs tls.ConnectionState) error {
	if err := k.rules.check(&cs); err != nil {
		return k.refusal(err, snapshot.Trust)
	}
	if k.requireALPN && !slices.Contains(k.protos, cs.NegotiatedProtocol) {
		return k.refusal(&ProfileError{Profile: k.rules.profile, What: whatProtocol, Negotiated: NegotiatedOf(&cs),
			Value: fmt.Sprintf("%q (wanted: %s)", cs.NegotiatedProtocol, strings.Join(k.protos, ", "))}, snapshot.Trust)
	}
	if k.side == handshake.Server {
		host = strings.ToLower(cs.ServerName)
	}
	result, err := k.chain(ctx, snapshot.Trust, host, &cs)
	if err != nil {
		return k.refusal(k.advise(err, cs), snapshot.Trust)
	}
	c.request = Request{Peer: identity.Peer{ID: result.ID, Certificate: result.Path[0]}, Path: result.Path, Host: host, State: &cs}
	if err := k.authorize.authorize(ctx, &c.request); err != nil {
		return k.refusal(err, snapshot.Trust)
	}
	c.expires = result.Path[0].NotAfter
	for _, cert := range result.Path[1:] {
		if cert.NotAfter.Before(c.expires) {
			c.expires = cert.NotAfter
		}
	}
	c.chain = cs.PeerCertificates
	return nil
}

// chain verifies what the peer presented: as an SVID, or by name where the
// client dials public servers.
func (k *core) chain(ctx context.Context, trust *chaincheck.Trust, host string, cs *tls.ConnectionState) (*chaincheck.Result, error) {
	if k.authorize.roots == nil {
		return k.verifier.Verify(ctx, trust, cs.PeerCertificates, cs.OCSPResponse)
	}
	return k.verifier.VerifyServerName(ctx, trust, k.authorize.roots, cs.PeerCertificates, host, cs.OCSPResponse)
}

// refusal says to sdk/handshake what the error alone does not.
func (k *core) refusal(err error, trust *chaincheck.Trust) error {
	r := &handshake.Refusal{Whose: handshake.Peer, Err: err, Roots: trust.Roots}
	if p, ok := errors.AsType[*ProfileError](err); ok {
		r.Cause, r.Whose = p.cause(), ""
	} else if _, ok := errors.AsType[*RefusedError](err); ok {
		r.Cause = handshake.Unauthorized
		if k.side == handshake.Client {
			r.Cause = handshake.WrongName
		}
	}
	return r
}

// advise adds what to do where the configuration can help.
func (k *core) advise(err error, cs tls.ConnectionState) error {
	var refusal *chaincheck.Error
	if !errors.As(err, &refusal) {
		return err
	}
	switch refusal.Cause {
	case chaincheck.RevocationUnknown:
		domain := "its trust domain"
		if id, idErr := leafID(cs); idErr == nil {
			domain = "the trust domain " + id.TrustDomain().Name()
		}
		return fmt.Errorf("%w; if %s publishes no CRLs (SPIRE's do not), set Revocation to chaincheck.Prefer", err, domain)
	case chaincheck.Lifetime:
		return fmt.Errorf("%w; issue certificates that live shorter, or set MaxLifetime", err)
	}
	return err
}

func leafID(cs tls.ConnectionState) (spiffeid.ID, error) {
	if len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) != 1 {
		return spiffeid.ID{}, errors.New("no SPIFFE ID")
	}
	return spiffeid.FromURI(cs.PeerCertificates[0].URIs[0])
}
