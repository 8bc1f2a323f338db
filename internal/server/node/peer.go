package node

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Caller is the agent at the other end of a connection, as its certificate
// says.
type Caller struct {
	Node     string
	Serial   string    // lower-case hex
	NotAfter time.Time // streams end then; zero is never
}

// peerOf reads the caller from the connection's client certificate, which
// the TLS credentials have verified.
func peerOf(td spiffeid.TrustDomain, c clock.Clock) func(context.Context) (Caller, error) {
	return func(ctx context.Context) (Caller, error) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return Caller{}, fault.New(fault.Denied, "this call came over no connection")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.PeerCertificates) == 0 || !info.State.HandshakeComplete || info.State.Version < tls.VersionTLS13 {
			return Caller{}, fault.New(fault.Denied, "the caller showed no certificate; an agent must show its own")
		}
		leaf := info.State.PeerCertificates[0]
		id, err := x509svid.IDFromCert(leaf)
		if err != nil {
			return Caller{}, fault.New(fault.Denied, "the caller's certificate is not an X.509-SVID: %w", err)
		}
		name, err := attestnode.NameOf(td, id)
		if err != nil {
			return Caller{}, err
		}
		// The handshake checked the dates once; connections live longer.
		if c.Now().After(leaf.NotAfter) {
			return Caller{}, fault.New(fault.Denied, "the certificate of node %s expired at %s; connect again with a renewed one", name, leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		return Caller{Node: name, Serial: leaf.SerialNumber.Text(16), NotAfter: leaf.NotAfter}, nil
	}
}

// addressOf is the caller's IP address; invalid when the transport has none.
func addressOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	ap, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// admit says which node calls, after checking that its certificate is the
// one it should use and that it is not banned.
func (s *Server) admit(ctx context.Context) (Caller, error) {
	caller, err := s.p.Peer(ctx)
	if err != nil {
		return Caller{}, err
	}
	if rec, ok, _ := s.p.Registry.Lookup(caller.Node); ok && rec.Check(caller.Serial) == nil {
		return caller, nil
	}
	// Memory may lag behind what another replica wrote.
	rec, err := s.p.Registry.Get(ctx, caller.Node)
	if fault.Is(err, fault.NotFound) {
		return Caller{}, fault.New(fault.Denied, "node %s has not attested here; attest it: legation token create --node %s", caller.Node, caller.Node)
	}
	if err != nil {
		return Caller{}, err
	}
	if err := rec.Check(caller.Serial); err != nil {
		return Caller{}, err
	}
	return caller, nil
}

// guard ends a stream's context when its node may no longer have it: banned,
// attested anew, or the certificate it was opened with expired. stop waits
// for the guard to be gone.
func (s *Server) guard(ctx context.Context, caller Caller) (guarded context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		expired := make(chan struct{})
		go func() {
			defer close(expired)
			if !caller.NotAfter.IsZero() && clock.Until(ctx, s.p.Clock, caller.NotAfter) == nil {
				cancel(fault.New(fault.Denied, "the certificate that node %s opened this stream with has expired; connect again with a renewed one", caller.Node))
			}
		}()
		defer func() { <-expired }()
		for {
			rec, ok, changed := s.p.Registry.Lookup(caller.Node)
			err := rec.Check(caller.Serial)
			if !ok {
				err = fault.New(fault.Denied, "node %s is no longer known here; attest it again", caller.Node)
			}
			if err != nil {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}
