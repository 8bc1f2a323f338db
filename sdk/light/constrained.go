package light

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/suites"
)

// ConstrainedSuites are the only ones of the constrained profile: ECDHE with an
// ECDSA certificate and AES-GCM (RFC 5289 3.2), forward-secret and
// authenticated.
var ConstrainedSuites = slices.Clone(suites.TLS12)

// constrainedCurves: what small TLS stacks have.
var constrainedCurves = []tls.CurveID{tls.X25519, tls.CurveP256}

const (
	constrainedLifetime  = 72 * time.Hour
	constrainedHandshake = 10 * time.Second
	// constrainedGrace is how long an open connection may outlive its peer's
	// certificate, as by default in sdk/mtls.
	constrainedGrace = time.Hour
)

// Constrained is mutual TLS 1.2 with peers that have nothing newer: small
// machines whose TLS library or memory ends there. Both sides must be
// configured so; it never speaks TLS 1.3, and sdk/mtls speaks 1.2 only under
// its profile Constrained, and then with the same suites, so that no other
// connection can be talked down.
//
// Both peers are verified as everywhere: chain, SPIFFE ID, revocation, and
// Authorize, in tls.Config.VerifyConnection. No session is ever resumed, no
// connection renegotiated. When the Source's trust changes, the peer of an
// open connection is judged again before the next byte is read or written.
//
// What TLS 1.2 costs: certificates cross the network in the clear, so that
// whoever listens sees both SPIFFE IDs; the key exchange is not protected
// against quantum computers; a handshake takes a round trip more.
type Constrained struct {
	// Source is what is presented and believed; required. Its certificate
	// must have an ECDSA key.
	Source identity.Source
	// Authorize returns nil for peers that may be talked to, by their verified
	// SPIFFE ID; required. A client names its server here.
	Authorize func(spiffeid.ID) error
	// Revocation says what missing revocation information means; the zero
	// value requires it.
	Revocation chaincheck.Policy
	// MaxLifetime refuses certificates that live longer, notBefore to
	// notAfter. Zero is 72 hours, negative is no limit.
	MaxLifetime time.Duration
	// HandshakeTimeout bounds a handshake; zero is 10 s.
	HandshakeTimeout time.Duration
	// NextProtos are the application protocols (ALPN, RFC 7301).
	NextProtos []string
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// ConstrainedConn is a connection of the constrained profile. Its methods are
// those of *tls.Conn; Read and Write shake hands first, and fail once the peer
// is believed no longer, or its certificate ended an hour ago.
type ConstrainedConn struct {
	*tls.Conn
	k *constrained

	handshake sync.Once
	err       error // of the handshake

	mu      sync.Mutex // guards what follows
	trust   *chaincheck.Trust
	peer    spiffeid.ID
	expires time.Time // the earliest of its path
	gone    error     // the peer is believed no longer
}

// constrained is a Constrained that was checked.
type constrained struct {
	Constrained
	verifier *chaincheck.Verifier
	server   bool
}

func (c Constrained) check(server bool) (*constrained, error) {
	switch {
	case c.Source == nil:
		return nil, errors.New("Constrained.Source is not set: nothing to present and nobody to believe; use Open, or identity.NewMemory")
	case c.Authorize == nil:
		return nil, errors.New("Constrained.Authorize is not set: say whom to let in; letting in everybody must be said by a function that returns nil")
	case c.MaxLifetime < 0:
		c.MaxLifetime = 0
	case c.MaxLifetime == 0:
		c.MaxLifetime = constrainedLifetime
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = constrainedHandshake
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	usage := chaincheck.Server
	if server {
		usage = chaincheck.Client
	}
	return &constrained{c, chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: usage, Revocation: c.Revocation, MaxLifetime: c.MaxLifetime, Now: c.Now}), server}, nil
}

// DialConstrained connects and shakes hands; ctx and HandshakeTimeout bound
// both. The error of a refused peer wraps a *chaincheck.Error or what
// Authorize returned.
func DialConstrained(ctx context.Context, network, address string, c Constrained) (*ConstrainedConn, error) {
	k, err := c.check(false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.HandshakeTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := k.wrap(raw)
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS 1.2 with %s: %w", address, err)
	}
	return conn, nil
}

// ListenConstrained returns a listener whose connections, all of them
// *ConstrainedConn, shake hands when they are first used. Closing it closes
// the one underneath.
func ListenConstrained(l net.Listener, c Constrained) (net.Listener, error) {
	k, err := c.check(true)
	if err != nil {
		return nil, err
	}
	return constrainedListener{l, k}, nil
}

type constrainedListener struct {
	net.Listener
	k *constrained
}

func (l constrainedListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.k.wrap(raw), nil
}

func (k *constrained) wrap(raw net.Conn) *ConstrainedConn {
	c := &ConstrainedConn{k: k}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: ConstrainedSuites, CurvePreferences: constrainedCurves, NextProtos: k.NextProtos,
		SessionTicketsDisabled: true, Renegotiation: tls.RenegotiateNever,
		Time:             k.Now,
		VerifyConnection: c.verify,
	}
	if k.server {
		config.ClientAuth = tls.RequireAnyClientCert // verified in VerifyConnection
		config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.own() }
		c.Conn = tls.Server(raw, config)
		return c
	}
	// crypto/tls checks names and the web's roots; VerifyConnection checks
	// SPIFFE's, in every handshake.
	config.InsecureSkipVerify = true
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.own() }
	c.Conn = tls.Client(raw, config)
	return c
}

func (k *constrained) own() (*tls.Certificate, error) {
	s, _, err := k.Source.Current()
	if err != nil {
		return nil, err
	}
	if s.Certificate == nil {
		return nil, errors.New("the Source has no certificate to present")
	}
	if _, ok := s.Certificate.Leaf.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("the certificate of %s has a key of type %T; the constrained profile needs ECDSA", s.ID, s.Certificate.Leaf.PublicKey)
	}
	return s.Certificate, nil
}

// verify judges the peer of a handshake.
func (c *ConstrainedConn) verify(cs tls.ConnectionState) error {
	switch {
	case cs.Version != tls.VersionTLS12:
		return fmt.Errorf("%s was agreed on; the constrained profile is TLS 1.2 alone", tls.VersionName(cs.Version))
	case !slices.Contains(ConstrainedSuites, cs.CipherSuite):
		return fmt.Errorf("%s was agreed on, which the constrained profile does not allow", tls.CipherSuiteName(cs.CipherSuite))
	case cs.DidResume:
		return errors.New("the session was resumed, which skips the peer's certificate")
	}
	s, _, err := c.k.Source.Current()
	if err != nil {
		return err
	}
	r, err := c.k.verifier.Verify(context.Background(), s.Trust, cs.PeerCertificates, cs.OCSPResponse)
	if err == nil {
		err = c.k.authorize(r.ID)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trust, c.peer, c.expires = s.Trust, r.ID, r.Path[0].NotAfter
	for _, cert := range r.Path[1:] {
		if cert.NotAfter.Before(c.expires) {
			c.expires = cert.NotAfter
		}
	}
	return nil
}

func (k *constrained) authorize(id spiffeid.ID) error {
	if err := k.Authorize(id); err != nil {
		return fmt.Errorf("peer %s is verified and not authorised: %w", id, err)
	}
	return nil
}

// judge says why the peer of an open connection is believed no longer. That its
// certificate ended since, or that lists are missing, refuses handshakes, and
// must not hide what is wrong beside it.
func (k *constrained) judge(trust *chaincheck.Trust, chain []*x509.Certificate, expires time.Time) error {
	now := k.Now()
	at := now
	if expires.Before(at) {
		at = expires
	}
	usage := chaincheck.Server
	if k.server {
		usage = chaincheck.Client
	}
	r, err := chaincheck.Verify(chaincheck.Params{
		Chain: chain, Roots: trust.Roots, Denied: trust.Denied, Revocation: chaincheck.Off, Usage: usage, Now: at,
	})
	if err != nil {
		return err
	}
	if k.Revocation != chaincheck.Off {
		for n, cert := range r.Path[:len(r.Path)-1] {
			if found := trust.CRLs.Lookup(cert, r.Path[n+1], now, nil); found.Status == chaincheck.StatusRevoked {
				return &chaincheck.Error{Cause: chaincheck.Revoked, Subject: r.ID.String(), Detail: found.String(), Certificate: cert}
			}
		}
	}
	return k.authorize(r.ID)
}

// Handshake is HandshakeContext with no end of its own but HandshakeTimeout.
func (c *ConstrainedConn) Handshake() error { return c.HandshakeContext(context.Background()) }

// HandshakeContext shakes hands once, within HandshakeTimeout.
func (c *ConstrainedConn) HandshakeContext(ctx context.Context) error {
	c.handshake.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, c.k.HandshakeTimeout)
		defer cancel()
		c.err = c.Conn.HandshakeContext(ctx)
	})
	return c.err
}

// PeerID is the peer's verified SPIFFE ID; zero before the handshake.
func (c *ConstrainedConn) PeerID() spiffeid.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer
}

// believed judges the peer again when the trust changed since. While the Source
// has none, the last one counts.
func (c *ConstrainedConn) believed() error {
	if err := c.Handshake(); err != nil {
		return err
	}
	c.mu.Lock()
	peer, judged, newest, expires, gone := c.peer, c.trust, c.trust, c.expires, c.gone
	c.mu.Unlock()
	if s, _, err := c.k.Source.Current(); err == nil {
		newest = s.Trust
	}
	over := c.k.Now().After(expires.Add(constrainedGrace))
	if gone != nil || newest == judged && !over {
		return gone
	}
	err := c.k.judge(newest, c.ConnectionState().PeerCertificates, expires)
	if err == nil && over {
		err = fmt.Errorf("its certificate expired %s, and the grace of %s is over", expires.UTC().Format(time.RFC3339), constrainedGrace)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trust = newest; err != nil && c.gone == nil {
		c.gone = fmt.Errorf("the connection with %s is closed: %w", peer, err)
		_ = c.NetConn().Close()
	}
	return c.gone
}

// Read implements net.Conn.
func (c *ConstrainedConn) Read(b []byte) (int, error) {
	if err := c.believed(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n > 0 { // it may have waited long
		if gone := c.believed(); gone != nil {
			clear(b[:n])
			return 0, gone
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *ConstrainedConn) Write(b []byte) (int, error) {
	if err := c.believed(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
