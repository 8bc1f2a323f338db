package server

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/fault"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// farewell is how long a connection whose certificate was revoked still has:
// its streams end with the reason, which its agent should read.
const farewell = time.Second

// peers are the connections of callers that showed a certificate. TLS looks
// at it once, connections live for weeks: when it is revoked or expires, the
// connection ends.
type peers struct {
	grpccreds.TransportCredentials
	revoked func(*x509.Certificate) error

	mu   sync.Mutex // guards open
	open map[*peerConn]struct{}
}

func newPeers(inner grpccreds.TransportCredentials, revoked func(*x509.Certificate) error) *peers {
	return &peers{TransportCredentials: inner, revoked: revoked, open: map[*peerConn]struct{}{}}
}

// peerConn is one of them.
type peerConn struct {
	net.Conn
	peers *peers
	leaf  *x509.Certificate
	end   *time.Timer // closes it at the end of its certificate
	once  sync.Once

	revoked bool // guarded by peers.mu: end is near
}

func (c *peerConn) Close() error {
	c.once.Do(func() {
		c.end.Stop()
		c.peers.mu.Lock()
		defer c.peers.mu.Unlock()
		delete(c.peers.open, c)
	})
	return c.Conn.Close()
}

func (p *peers) ServerHandshake(raw net.Conn) (net.Conn, grpccreds.AuthInfo, error) {
	conn, info, err := p.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	leaf := leafOf(info)
	if leaf == nil {
		return conn, info, nil
	}
	c := &peerConn{Conn: conn, peers: p, leaf: leaf}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.end = time.AfterFunc(time.Until(leaf.NotAfter), func() { conn.Close() })
	p.open[c] = struct{}{}
	p.judgeLocked(c) // it may have been revoked since the handshake looked
	return c, info, nil
}

func (p *peers) Clone() grpccreds.TransportCredentials { return p }

func leafOf(info grpccreds.AuthInfo) *x509.Certificate {
	t, ok := info.(grpccreds.TLSInfo)
	if !ok || len(t.State.PeerCertificates) == 0 {
		return nil
	}
	return t.State.PeerCertificates[0]
}

func (p *peers) judgeLocked(c *peerConn) {
	if !c.revoked && p.revoked(c.leaf) != nil {
		c.revoked = true
		c.end.Reset(farewell)
	}
}

// review looks at every connection; call it when more is revoked.
func (p *peers) review() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		p.judgeLocked(c)
	}
}

// revoked returns fault.Denied for a certificate that is in the CRL or has
// expired.
func (s *server) revoked(leaf *x509.Certificate) error {
	state, _ := s.authority.State()
	if r, ok := state.Revoked(leaf.SerialNumber.Text(16)); ok {
		return fault.New(fault.Denied, "the certificate %s of the caller was revoked at %s", leaf.SerialNumber.Text(16), r.At.UTC().Format(time.RFC3339))
	}
	if time.Now().After(leaf.NotAfter) {
		return fault.New(fault.Denied, "the certificate %s of the caller expired at %s; connect again with a newer one", leaf.SerialNumber.Text(16), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// classify tells who calls, at each call: what a certificate proves ends with
// it, not with the connection.
func (s *server) classify(ctx context.Context) (callers.Identity, error) {
	i, err := s.operators.TLS(ctx)
	if err != nil {
		return i, err
	}
	if p, ok := peer.FromContext(ctx); ok {
		if leaf := leafOf(p.AuthInfo); leaf != nil {
			err = s.revoked(leaf)
		}
	}
	return i, err
}

// followRevocations ends the connections of those who are revoked.
func (s *server) followRevocations(ctx context.Context, p *peers) error {
	number := uint64(0)
	for {
		state, changed := s.authority.State()
		if state.CRL.Number != number {
			number = state.CRL.Number
			p.review()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
