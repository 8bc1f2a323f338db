package upstream

import (
	"context"
	"crypto/x509"
	"fmt"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

// attest proves which node this is and returns its first identity.
func (l *Link) attest(ctx context.Context, server string) (*Identity, error) {
	if l.p.Prover == nil {
		return nil, &errAttest{fault.New(fault.Denied, "the certificate of this node has expired and there is nothing to attest with; make a join token: legation token create --node NAME")}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := l.dial(server, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := newCSR(key, spiffeid.ID{}, l.p.DNSNames)
	if err != nil {
		return nil, err
	}
	result, err := l.converse(ctx, nodev1.NewAttestationClient(conn), csr)
	if err != nil {
		return nil, err
	}
	roots, err := l.admitBundle(result.GetBundle())
	if err != nil {
		return nil, &errAttest{fmt.Errorf("attest: the answer's bundle: %w", err)}
	}
	id, err := l.newIdentity(key, result.GetChain(), roots)
	if err != nil {
		return nil, &errAttest{fmt.Errorf("attest: %w", err)}
	}
	if id.ID.String() != result.GetSpiffeId() {
		return nil, &errAttest{fault.New(fault.Invalid, "attest: the certificate is for %s, the answer says %q", id.ID, result.GetSpiffeId())}
	}
	l.pinned.learn(roots)
	l.keepIdentity(id, roots)
	l.p.Log.Info("this node is attested", "spiffe_id", id.ID.String(), "serial", id.Serial, "expires", id.NotAfter())
	return id, nil
}

func (l *Link) converse(ctx context.Context, client nodev1.AttestationClient, csr []byte) (*nodev1.AttestResult, error) {
	payload, err := l.p.Prover.Payload(ctx)
	if err != nil {
		return nil, &errAttest{fmt.Errorf("attest by %s: %w", l.p.Prover.Method(), err)}
	}
	stream, err := client.Attest(ctx)
	if err != nil {
		return nil, err
	}
	// A send that fails is explained by the receive that follows.
	_ = stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_Start{Start: &nodev1.AttestStart{
		Hello: l.hello(), Method: l.p.Prover.Method(), Payload: payload, Csr: csr}}})
	for range attestnode.MaxSteps + 1 {
		res, err := stream.Recv()
		if err != nil {
			return nil, &errAttest{err}
		}
		if result := res.GetResult(); result != nil {
			return result, nil
		}
		response, err := l.p.Prover.Respond(ctx, res.GetChallenge())
		if err != nil {
			return nil, &errAttest{fmt.Errorf("attest by %s: %w", l.p.Prover.Method(), err)}
		}
		_ = stream.Send(&nodev1.AttestRequest{Step: &nodev1.AttestRequest_ChallengeResponse{ChallengeResponse: response}})
	}
	return nil, &errAttest{fault.New(fault.Invalid, "attest: the control plane sent more than %d challenges", attestnode.MaxSteps)}
}

// admitBundle takes the bundle of an attestation, which came over a
// connection verified by the pin, as the first of the view.
func (l *Link) admitBundle(b *nodev1.Bundle) ([]*x509.Certificate, error) {
	if b == nil {
		return nil, fault.New(fault.Invalid, "it is missing")
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.begin()
	// The version is not known here, so the trust stream sends it once more.
	err = batch.apply(&nodev1.TrustResource{Type: typeBundle, Name: l.p.TrustDomain.Name(), Body: body})
	if err != nil && l.view.Get().Bundles[l.p.TrustDomain.Name()].GetSequence() <= b.GetSequence() {
		return nil, err
	}
	l.publish(batch)
	return parseCerts(l.view.Get().Bundles[l.p.TrustDomain.Name()].GetX509Roots())
}

// renew obtains the next certificate under a new key.
func (l *Link) renew(ctx context.Context, s *session, id *Identity) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key, err := newKey()
	if err != nil {
		return err
	}
	csr, err := newCSR(key, id.ID, l.p.DNSNames)
	if err != nil {
		return err
	}
	res, err := s.client.Renew(ctx, &nodev1.RenewRequest{TrustDomain: l.p.TrustDomain.Name(), Csr: csr})
	if err != nil {
		return err
	}
	roots := l.roots()
	next, err := l.newIdentity(key, res.GetChain(), roots)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	if next.ID != id.ID {
		return fault.New(fault.Invalid, "renew: the certificate is for %s, not %s", next.ID, id.ID)
	}
	l.keepIdentity(next, roots)
	l.p.Log.Info("the node's certificate is renewed", "serial", next.Serial, "expires", next.NotAfter())
	return nil
}
