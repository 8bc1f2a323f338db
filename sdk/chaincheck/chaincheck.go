// Package chaincheck answers "is this chain an X.509-SVID that this trust
// domain issued and has not taken back". It is the one verifier of every Go
// part: it builds the path itself, checks every link by path, by certificate
// revocation list, by OCSP and by what is denied, and explains each link, or
// names the one cause of a refusal and the roots that were tried.
//
// It follows the X509-SVID standard and RFC 5280, is strict where a standard
// says MUST, and does no unbounded work: a chain from a stranger costs at
// most a fixed number of signature checks and name comparisons. Who may talk
// to whom is left to the caller, who gets the SPIFFE ID.
//
// Most programs make one [Verifier], give it the [Trust] of the moment with
// each chain, and replace that whole when roots, lists or denials change; it
// remembers whom it accepted until anything that rests on ends. [Verify] is
// one verification without memory, and [VerifyServerName] is for servers with
// certificates of the web PKI. Revocation is judged from what is pushed
// ([CRLSet], [DenySet]), from what the peer staples, and, where an [OCSP] is
// given, by asking; what is missing means what [Policy] says. Asking over
// HTTP is in the package ocsphttp, so that nothing here links an HTTP client.
//
// Counts are in [Verifier.Stats] and [OCSP.Stats]; nothing is registered
// anywhere.
package chaincheck

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Usage is what the leaf is presented as (RFC 5280 4.2.1.12).
type Usage int

// The usages. There is no default: a verifier knows which side it is.
const (
	// Client: the peer dialled us; the leaf must carry id-kp-clientAuth.
	Client Usage = iota + 1
	// Server: we dialled the peer; the leaf must carry id-kp-serverAuth.
	Server
	// Any: outside a handshake; no purpose is required of the leaf.
	Any
)

// Policy says what missing or unusable revocation information means. A
// certificate that a genuine CRL or OCSP answer revokes is refused under
// Require and Prefer alike, and one that the DenySet names under every policy.
type Policy int

// The policies.
const (
	// Require: every certificate below the anchor needs a current CRL or OCSP
	// answer that acquits it. The default.
	Require Policy = iota
	// Prefer: without one a link is accepted and says so. Not where an OCSP
	// responder answered that it does not know the certificate, nor where a
	// certificate demands a stapled answer (RFC 7633) that is not there.
	Prefer
	// Off: neither CRLs nor OCSP are looked at.
	Off
)

// Limits on what a peer may present.
const (
	maxPresented = 16       // certificates in a chain
	maxDER       = 64 << 10 // bytes of one certificate
	defaultDepth = 5        // intermediates in a path
)

// Roots are the trust anchors, each bound to the one trust domain it may
// speak for. An anchor need not be self-signed, but must be a CA.
type Roots map[spiffeid.TrustDomain][]*x509.Certificate

// Params is one question.
type Params struct {
	// Chain is what the peer presented, leaf first; the order of the rest
	// does not matter. VerifyLeafRaw fills it.
	Chain []*x509.Certificate
	Roots Roots
	// CRLs may be nil. Shared by many calls.
	CRLs *CRLSet
	// Denied may be nil. Shared by many calls.
	Denied *DenySet
	// Staple is the OCSP response that came with the leaf
	// (tls.ConnectionState.OCSPResponse); may be nil. One that does not hold is
	// as good as none.
	Staple []byte
	// OCSP remembers and fetches answers; nil neither. Fetched is only what
	// neither CRLs nor Staple decide, only for certificates whose path to an
	// anchor holds, and only from the responders that they name.
	OCSP *OCSP
	// Context ends waiting for OCSP early; nil is context.Background().
	Context    context.Context
	Revocation Policy
	Usage      Usage
	// Now is wall time; zero is time.Now().
	Now time.Time
	// MaxLifetime refuses leaves that live longer, notBefore to notAfter;
	// zero is no limit.
	MaxLifetime time.Duration
	// MaxDepth is the most intermediates, self-issued ones not counted,
	// between leaf and root; zero is 5, negative allows none.
	MaxDepth int
}

// Result is a verified chain.
type Result struct {
	// ID is the peer's identity; zero from VerifyServerName.
	ID spiffeid.ID
	// Host is the name that VerifyServerName verified; else empty.
	Host string
	// Path is leaf first, trust anchor last.
	Path []*x509.Certificate
	// Links has one element per certificate of Path.
	Links []Link
	// Work is what the verification cost.
	Work Work

	since, until time.Time // in between the verdict is the same
}

// Link explains why one certificate of a path is believed.
type Link struct {
	Certificate *x509.Certificate
	// Issuer signed Certificate; nil for the trust anchor.
	Issuer     *x509.Certificate
	Revocation Revocation
}

// String explains the link in words.
func (l Link) String() string {
	if l.Issuer == nil {
		return fmt.Sprintf("%s is a trust anchor, valid until %s", describe(l.Certificate), stamp(l.Certificate.NotAfter))
	}
	return fmt.Sprintf("%s was signed by %s with %s, is valid until %s; %s", describe(l.Certificate), describe(l.Issuer),
		l.Certificate.SignatureAlgorithm, stamp(l.Certificate.NotAfter), l.Revocation)
}

func (s *search) result(r *Result) *Result {
	r.Path, r.Links, r.Work = make([]*x509.Certificate, len(s.path)), make([]Link, len(s.path)), s.work
	for i, f := range s.path {
		r.Path[i] = f.cert
		r.Links[i] = Link{Certificate: f.cert, Revocation: s.revocation[i]}
		if i > 0 {
			r.Links[i-1].Issuer = f.cert
		}
	}
	r.since, r.until = s.window()
	return r
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// VerifyLeafRaw parses certificates as a TLS handshake presents them, leaf
// first, and verifies them. p.Chain is ignored.
func VerifyLeafRaw(rawCerts [][]byte, p Params) (*Result, error) {
	if len(rawCerts) > maxPresented {
		return nil, refuse(TooComplex, nil, "%d certificates were presented, at most %d are looked at", len(rawCerts), maxPresented)
	}
	p.Chain = make([]*x509.Certificate, len(rawCerts))
	for n, der := range rawCerts {
		if len(der) > maxDER {
			return nil, refuse(TooComplex, nil, "certificate %d of the chain has %d bytes, at most %d are looked at", n, len(der), maxDER)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse(Malformed, nil, "certificate %d of the chain does not parse: %.256v", n, err) // it repeats what a stranger wrote
		}
		p.Chain[n] = cert
	}
	return Verify(p)
}

// Verify checks a chain. The error is always an *Error.
func Verify(p Params) (*Result, error) {
	leaf, err := p.leaf()
	if err != nil {
		return nil, err
	}
	id, err := leaf.spiffeID()
	if err != nil {
		return nil, err
	}
	anchors := p.Roots[id.TrustDomain()]
	if len(anchors) == 0 {
		return nil, refuse(WrongTrustDomain, leaf.cert, "no roots are known for the trust domain %s; is it federated?", id.TrustDomain())
	}
	s := newSearch(leaf, p.Chain[1:], anchors, p)
	s.spiffe, s.id = true, id
	defer s.stop()
	if err := s.run(); err != nil {
		if e := s.foreignAnchor(err, id.TrustDomain(), p.Roots); e != nil {
			return nil, e
		}
		return nil, err
	}
	return s.result(&Result{ID: id}), nil
}

// leaf reads the first certificate presented.
func (p *Params) leaf() (*facts, *Error) {
	switch {
	case len(p.Chain) == 0:
		return nil, refuse(NoCertificate, nil, "the peer presented no certificate")
	case len(p.Chain) > maxPresented:
		return nil, refuse(TooComplex, nil, "%d certificates were presented, at most %d are looked at", len(p.Chain), maxPresented)
	}
	if n := slices.Index(p.Chain, nil); n >= 0 {
		return nil, refuse(BadParams, nil, "certificate %d of the chain is nil", n)
	}
	leaf, err := factsOf(p.Chain[0])
	if err != nil {
		return nil, err
	}
	if lifetime := leaf.cert.NotAfter.Sub(leaf.cert.NotBefore); p.MaxLifetime > 0 && lifetime > p.MaxLifetime {
		return nil, refuse(Lifetime, leaf.cert, "it lives %s, at most %s is accepted", lifetime, p.MaxLifetime)
	}
	return leaf, nil
}

func newSearch(leaf *facts, pool, anchors []*x509.Certificate, p Params) *search {
	s := &search{leaf: leaf, pool: pool, anchors: anchors, usage: p.Usage, now: p.Now, maxDepth: p.MaxDepth, evidence: evidence{
		context: p.Context, policy: p.Revocation, crls: p.CRLs, denied: p.Denied, staple: p.Staple, ocsp: p.OCSP,
	}}
	if s.now.IsZero() {
		s.now = time.Now()
	}
	// Certificates count in whole seconds: one is valid through the whole
	// second that notAfter names (RFC 5280 4.1.2.5).
	s.now = s.now.Truncate(time.Second)
	switch {
	case s.maxDepth == 0:
		s.maxDepth = defaultDepth
	case s.maxDepth < 0:
		s.maxDepth = 0
	}
	return s
}
