package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/internal/grpcpeer"
)

// Peer is who is at the other end of a connection that sdk/mtls or
// sdk/grpccreds verified.
type Peer struct {
	ID spiffeid.ID
	// Certificate is the peer's leaf.
	Certificate *x509.Certificate
}

// PeerOf reads the peer from a connection whose handshake sdk/mtls or
// sdk/grpccreds completed. It does not verify: a connection of any other
// configuration proves nothing.
func PeerOf(cs *tls.ConnectionState) (Peer, error) {
	if cs == nil || !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Peer{}, errors.New("the connection has no verified peer: it is not TLS, or its handshake is not complete")
	}
	leaf := cs.PeerCertificates[0]
	if len(leaf.URIs) != 1 {
		return Peer{}, fmt.Errorf("the peer's certificate has %d URI names, a SPIFFE identity has one (X509-SVID 2)", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return Peer{}, err
	}
	return Peer{ID: id, Certificate: leaf}, nil
}

type peerKey struct{}

// ContextWithPeer returns a context that carries the verified peer of a request.
func ContextWithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, &p)
}

// PeerFromContext returns the verified peer of a request; false without one.
// In a gRPC handler it is the peer of the call's connection when that has
// credentials of sdk/grpccreds.
func PeerFromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(*Peer)
	if !ok {
		if p, ok = grpcpeer.Find(ctx).(*Peer); !ok || p == nil {
			return Peer{}, false
		}
	}
	return *p, true
}
