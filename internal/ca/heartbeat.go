package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

// heartbeatText is what a heartbeat signs; see api/node/v1 Heartbeat.
func heartbeatText(authority string, number uint64, unix int64) []byte {
	return fmt.Appendf(nil, "legation-crl-heartbeat-v1\n%s\n%d\n%d\n", authority, number, unix)
}

// beat signs that the CRL known here is current, and publishes that. It asks
// the store first: a replica that is cut off must not vouch for an old list.
// Heartbeats are not stored: each replica signs its own.
func (a *Authority) beat(ctx context.Context) error {
	kv, err := a.store.Get(ctx, a.crlKey())
	if err == nil && kv.Revision != a.state.Get().crlRevision {
		err = a.reload(ctx)
	}
	if err != nil {
		return fmt.Errorf("look whether the CRL is current: %w", err)
	}
	number := a.state.Get().CRL.Number
	unix := a.guard.Now().Unix()
	digest := sha256.Sum256(heartbeatText(DefaultName, number, unix))
	signature, err := a.issuingKey.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign the heartbeat: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := *a.state.Get()
	next.Heartbeat = &nodev1.Heartbeat{Authority: DefaultName, CrlNumber: number, UnixSeconds: unix, Signature: signature, Issuer: a.issuing.Raw}
	a.state.Store(&next)
	return nil
}

// VerifyHeartbeat checks a heartbeat's signature by its issuer, who must be
// verified as a CA of the trust domain by the caller. fault.Denied if it does
// not verify.
func VerifyHeartbeat(h *nodev1.Heartbeat, issuer *x509.Certificate) error {
	key, ok := issuer.PublicKey.(*ecdsa.PublicKey)
	digest := sha256.Sum256(heartbeatText(h.GetAuthority(), h.GetCrlNumber(), h.GetUnixSeconds()))
	if !ok || !ecdsa.VerifyASN1(key, digest[:], h.GetSignature()) {
		return fault.New(fault.Denied, "the heartbeat of authority %s over CRL %d is not signed by %s", h.GetAuthority(), h.GetCrlNumber(), issuer.Subject.CommonName)
	}
	return nil
}
