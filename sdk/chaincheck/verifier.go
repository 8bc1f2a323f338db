package chaincheck

import (
	"context"
	"crypto/x509"
	"slices"
	"sync/atomic"
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
	// OCSP remembers and fetches answers; nil reads only what is stapled. It
	// is not closed by the verifier.
	OCSP *OCSP
	// MaxLifetime refuses leaves that live longer; zero is no limit.
	MaxLifetime time.Duration
	// MaxDepth as in Params.
	MaxDepth int
	// CacheSize is how many accepted chains are remembered, rounded up to a
	// multiple of 16; zero is 1024, negative none. A chain of more than 32 KiB,
	// its staple included, is verified each time.
	CacheSize int
	// Now is wall time; nil is time.Now.
	Now func() time.Time
}

// Verifier judges many chains by the same rules, and remembers the accepted
// ones: what a peer that connects again costs is a comparison of bytes. What
// is remembered dies with the Trust it was judged by, with an OCSP answer that
// turns bad, and with the first certificate, list or answer on the path that
// ends; a refusal is never remembered. Any number of goroutines may use it. It
// remembers under one Trust at a time, the last it saw: make one Verifier for
// each identity.Source.
type Verifier struct {
	config   VerifierConfig
	perShard int

	cache        atomic.Pointer[cache]
	hits, misses atomic.Uint64
}

// NewVerifier returns a verifier.
func NewVerifier(c VerifierConfig) *Verifier {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CacheSize == 0 {
		c.CacheSize = 1024
	}
	v := &Verifier{config: c}
	if c.CacheSize > 0 {
		v.perShard = (c.CacheSize + cacheShards - 1) / cacheShards
	}
	return v
}

// Verify judges a chain as a peer presented it, leaf first. staple is the OCSP
// response that came with it; may be nil. The Result is shared with others: do
// not change it. It waits, at most OCSPConfig.Timeout and never beyond ctx,
// only where Params.OCSP says. The error is always an *Error.
func (v *Verifier) Verify(ctx context.Context, t *Trust, chain []*x509.Certificate, staple []byte) (*Result, error) {
	if t == nil {
		return nil, refuse(BadParams, nil, "there is no trust to judge by yet")
	}
	now := v.config.Now()
	var generation uint64
	var remembered *cache
	if v.perShard > 0 && len(chain) > 0 && len(chain) <= maxPresented && !slices.Contains(chain, nil) {
		remembered = v.under(t)
		if v.config.OCSP != nil {
			generation = v.config.OCSP.generation.Load()
		}
		if r := remembered.find(chain, staple, now.Truncate(time.Second), generation); r != nil {
			v.hits.Add(1)
			return r, nil
		}
	}
	v.misses.Add(1)
	r, err := Verify(v.params(ctx, t, chain, staple, now))
	if err == nil && remembered != nil {
		remembered.keep(chain, staple, r, generation, v.perShard)
	}
	return r, err
}

// VerifyServerName is the function of that name by this verifier's rules: for
// a server that presents a certificate of the web PKI. Its Usage must be
// Server. Of t, which may be nil, only CRLs and Denied are used. Nothing is
// remembered.
func (v *Verifier) VerifyServerName(ctx context.Context, t *Trust, roots, chain []*x509.Certificate, host string, staple []byte) (*Result, error) {
	if t == nil {
		t = &Trust{}
	}
	p := v.params(ctx, t, chain, staple, v.config.Now())
	p.Roots = nil
	return VerifyServerName(p, roots, host)
}

func (v *Verifier) params(ctx context.Context, t *Trust, chain []*x509.Certificate, staple []byte, now time.Time) Params {
	return Params{
		Chain: chain, Roots: t.Roots, CRLs: t.CRLs, Denied: t.Denied, Staple: staple, OCSP: v.config.OCSP, Context: ctx,
		Revocation: v.config.Revocation, Usage: v.config.Usage, Now: now, MaxLifetime: v.config.MaxLifetime, MaxDepth: v.config.MaxDepth,
	}
}

// under returns what is remembered under t, and forgets what was under
// another. A Trust is told apart by its address, which it keeps while it is
// remembered here.
func (v *Verifier) under(t *Trust) *cache {
	for {
		old := v.cache.Load()
		if old != nil && old.trust == t {
			return old
		}
		if fresh := newCache(t); v.cache.CompareAndSwap(old, fresh) {
			return fresh
		}
	}
}

// VerifierStats count since NewVerifier.
type VerifierStats struct {
	Hits       uint64 // verdicts remembered
	Misses     uint64 // chains verified
	Remembered int    // chains remembered now
}

// Stats returns the counts.
func (v *Verifier) Stats() VerifierStats {
	s := VerifierStats{Hits: v.hits.Load(), Misses: v.misses.Load()}
	if c := v.cache.Load(); c != nil {
		s.Remembered = c.len()
	}
	return s
}
