package chaincheck

import (
	"context"
	"crypto/x509"
	"time"
)

// Trust is what chains are judged by at one moment: never changed, replaced
// whole.
type Trust struct {
	Roots Roots
	// CRLs may be nil.
	CRLs *CRLSet
	// Denied may be nil.
	Denied *DenySet
}

// VerifierConfig is how one side judges its peers.
type VerifierConfig struct {
	// Usage is what peers present their leaf as.
	Usage Usage
	// Revocation says what missing revocation information means.
	Revocation Policy
	// MaxLifetime refuses leaves that live longer; zero is no limit.
	MaxLifetime time.Duration
	// MaxDepth as in Params.
	MaxDepth int
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// Verifier judges many chains by the same rules.
type Verifier struct {
	config VerifierConfig
}

// NewVerifier returns a verifier.
func NewVerifier(c VerifierConfig) *Verifier {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Verifier{config: c}
}

// Verify judges a chain as a peer presented it, leaf first. staple is the OCSP
// response that came with it; may be nil. The error is always an *Error.
func (v *Verifier) Verify(_ context.Context, t *Trust, chain []*x509.Certificate, staple []byte) (*Result, error) {
	r, err := Verify(Params{
		Chain: chain, Roots: t.Roots, CRLs: t.CRLs, Revocation: v.config.Revocation, Usage: v.config.Usage,
		Now: v.config.Now(), MaxLifetime: v.config.MaxLifetime, MaxDepth: v.config.MaxDepth,
	})
	if err != nil {
		return nil, err
	}
	if d, denied := t.Denied.Lookup(r.ID, r.Path); denied {
		return nil, refuse(Revoked, d.certificate(r.Path), "%s", d)
	}
	return r, nil
}
