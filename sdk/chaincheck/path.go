package chaincheck

import (
	"bytes"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Work counts what a verification did. It is bounded whatever was presented.
type Work struct {
	Signatures  int `json:"signatures"`  // checks, of certificates, stapled answers, and CRLs not checked before
	Steps       int `json:"steps"`       // candidates looked at while building paths
	Comparisons int `json:"comparisons"` // names held against name constraints
	Waits       int `json:"waits"`       // OCSP answers waited for
}

// Bounds of Work. An honest chain needs 2 or 3 signatures and 5 steps.
const (
	maxSignatures  = 16
	maxSteps       = 4096
	maxComparisons = 20_000
)

// search builds a path from the leaf to an anchor, depth first, and checks it
// on the way. It knows nothing of SPIFFE but spiffe.
type search struct {
	leaf     *facts
	pool     []*x509.Certificate // what may stand between
	anchors  []*x509.Certificate
	usage    Usage
	now      time.Time
	maxDepth int  // intermediates that are not self-issued
	spiffe   bool // hold certificates against what only X509-SVID asks
	evidence      // what is known of revocation

	path       []*facts
	revocation []Revocation // of path[i], once complete
	known      []candidate  // memo, in the order of first use
	signed     []signature  // memo
	work       Work
	best       *Error
	bestRank   rank
}

type candidate struct {
	cert  *x509.Certificate
	facts *facts
	err   *Error
}

type signature struct {
	child *x509.Certificate
	spki  []byte
	ok    bool
}

// rank orders what is worth telling when no path holds: the failure that came
// closest to an anchor says most.
type rank int

const (
	noIssuer rank = iota + 1 // nothing leads further
	badIssuer
	badPath  // a path to an anchor breaks a rule
	overWork // no answer was found in the work allowed
)

func (s *search) note(r rank, err *Error) {
	if r > s.bestRank {
		s.best, s.bestRank = err, r
		err.Path = make([]*x509.Certificate, len(s.path))
		for i, f := range s.path {
			err.Path[i] = f.cert
		}
	}
}

// run finds a path. A nil error leaves it in s.path.
func (s *search) run() *Error {
	err := s.find()
	if err != nil {
		err.Anchors, err.Work = s.anchors, s.work
		if err.Path == nil && err.Certificate != nil {
			err.Path = []*x509.Certificate{s.leaf.cert}
		}
	}
	return err
}

func (s *search) find() *Error {
	switch {
	case s.usage < Client || s.usage > Any:
		return refuse(BadParams, nil, "the verifier must be told a usage: Client, Server or Any")
	case s.policy < Require || s.policy > Off:
		return refuse(BadParams, nil, "the verifier was given the unknown revocation policy %d", s.policy)
	}
	if err := s.leaf.checkLeaf(s.usage, s.now); err != nil {
		return err
	}
	if s.spiffe {
		if err := s.leaf.checkProfile(); err != nil {
			return err
		}
	}
	s.path = append(make([]*facts, 0, 4), s.leaf)
	if s.extend() {
		return nil
	}
	return s.best
}

func (s *search) extend() bool {
	child := s.path[len(s.path)-1]
	for _, anchor := range s.anchors {
		if s.step(child, anchor) {
			s.path = append(s.path, s.factsOf(anchor))
			if s.complete() {
				return true
			}
			s.path = s.path[:len(s.path)-1]
		}
	}
	for _, cert := range s.pool {
		if s.step(child, cert) && !s.onPath(cert) && s.depthAllows(cert) {
			s.path = append(s.path, s.factsOf(cert))
			if s.extend() {
				return true
			}
			s.path = s.path[:len(s.path)-1]
		}
	}
	s.note(noIssuer, refuse(UnknownCA, child.cert, "no trusted or presented CA certificate signed it"))
	return false
}

// step reports whether issuer may sign child and did.
func (s *search) step(child *facts, issuer *x509.Certificate) bool {
	if s.bestRank == overWork {
		return false
	}
	if s.work.Steps++; s.work.Steps > maxSteps {
		s.note(overWork, refuse(TooComplex, nil, "no path was found among the presented certificates in %d steps", maxSteps))
		return false
	}
	if !bytes.Equal(child.cert.RawIssuer, issuer.RawSubject) {
		return false
	}
	// Both present and different: another key of that name (RFC 5280 4.2.1.1).
	if len(child.cert.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(child.cert.AuthorityKeyId, issuer.SubjectKeyId) {
		return false
	}
	f, err := s.lookup(issuer)
	if err == nil {
		err = f.checkCA(s.usage, s.now)
	}
	if err == nil && s.spiffe {
		err = f.checkSigningID()
	}
	if err == nil {
		err = s.checkSignature(child.cert, issuer)
	}
	if err != nil {
		s.note(badIssuer, err)
		return false
	}
	return true
}

func (s *search) lookup(cert *x509.Certificate) (*facts, *Error) {
	for i := range s.known {
		if s.known[i].cert == cert {
			return s.known[i].facts, s.known[i].err
		}
	}
	f, err := factsOf(cert)
	s.known = append(s.known, candidate{cert, f, err})
	return f, err
}

func (s *search) factsOf(cert *x509.Certificate) *facts {
	f, _ := s.lookup(cert)
	return f
}

// checkSigningID: a signing certificate with a SPIFFE ID is an SVID, whose ID
// has no path (X509-SVID 3.2) and is its only URI (2), and whose key usage is
// critical (4.3).
func (f *facts) checkSigningID() *Error {
	uris, svid := 0, false
	for _, n := range f.names {
		if n.kind != nameURI {
			continue
		}
		uris++
		if !bytes.HasPrefix(bytes.ToLower(n.value[:min(len(n.value), 9)]), []byte("spiffe://")) {
			continue
		}
		svid = true
		if id, err := spiffeid.FromString(string(n.value)); err != nil || id.Path() != "" {
			return refuse(WrongSAN, f.cert, "it is a CA whose SPIFFE ID %.256q is not that of a trust domain (X509-SVID 3.2)", n.value)
		}
	}
	switch {
	case svid && uris > 1:
		return refuse(WrongSAN, f.cert, "it is a CA with a SPIFFE ID and %d other URI names (X509-SVID 2)", uris-1)
	case svid && !f.kuCritical:
		return refuse(BadUsage, f.cert, "it is a CA with a SPIFFE ID whose key usage is not critical (X509-SVID 4.3)")
	}
	return nil
}

func (s *search) checkSignature(child, issuer *x509.Certificate) *Error {
	failed := func() *Error {
		return refuse(BadSignature, child, "the key of %s did not make its signature", describe(issuer))
	}
	for i := range s.signed {
		if s.signed[i].child == child && bytes.Equal(s.signed[i].spki, issuer.RawSubjectPublicKeyInfo) {
			if s.signed[i].ok {
				return nil
			}
			return failed()
		}
	}
	if err := checkAlgorithm(child); err != nil {
		return err
	}
	if s.work.Signatures++; s.work.Signatures > maxSignatures {
		err := refuse(TooComplex, nil, "no path was found among the presented certificates in %d signature checks", maxSignatures)
		s.note(overWork, err)
		return err
	}
	ok := issuer.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
	s.signed = append(s.signed, signature{child, issuer.RawSubjectPublicKeyInfo, ok})
	if !ok {
		return failed()
	}
	return nil
}

// checkAlgorithm accepts signatures over SHA-256 and better.
func checkAlgorithm(c *x509.Certificate) *Error {
	if strongAlgorithm(c.SignatureAlgorithm) {
		return nil
	}
	return refuse(WeakKey, c, "its signature algorithm %s is not accepted", c.SignatureAlgorithm)
}

func strongAlgorithm(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return true
	}
	return false
}

// onPath reports whether a CA of that name and key is on the path already: to
// pass through it again leads nowhere new.
func (s *search) onPath(cert *x509.Certificate) bool {
	for _, f := range s.path {
		if bytes.Equal(f.cert.RawSubject, cert.RawSubject) && bytes.Equal(f.cert.RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
			return true
		}
	}
	return false
}

func (s *search) depthAllows(cert *x509.Certificate) bool {
	depth := 0
	for _, f := range s.path[1:] {
		if !f.selfIssued {
			depth++
		}
	}
	if !s.factsOf(cert).selfIssued {
		depth++
	}
	if depth > s.maxDepth {
		s.note(badIssuer, refuse(Constraint, cert, "the path through it has more than %d intermediates", s.maxDepth))
		return false
	}
	return true
}

// complete checks what can be said only of a whole path.
func (s *search) complete() bool {
	err := s.checkPathLen()
	if err == nil {
		err = s.checkNames()
	}
	if err == nil {
		err = s.checkFeatures()
	}
	if err == nil {
		err = s.checkRevocation()
	}
	if err != nil {
		s.note(badPath, err)
	}
	return err == nil
}

// checkPathLen: RFC 5280 4.2.1.9, 6.1.4 (l, m).
func (s *search) checkPathLen() *Error {
	below := 0 // intermediates below that are not self-issued
	for i, ca := range s.path {
		if i == 0 {
			continue
		}
		limit := ca.cert.MaxPathLen
		if (limit > 0 || limit == 0 && ca.cert.MaxPathLenZero) && below > limit {
			return refuse(Constraint, ca.cert, "its path length constraint allows %d CAs below it, there are %d", limit, below)
		}
		if !ca.selfIssued {
			below++
		}
	}
	return nil
}

// checkNames: RFC 5280 6.1.3 (b, c); every CA's constraints hold for all that
// is below it, except self-issued intermediates.
func (s *search) checkNames() *Error {
	for i, ca := range s.path {
		if ca.constraints == nil {
			continue
		}
		for j, below := range s.path[:i] {
			if j > 0 && below.selfIssued {
				continue
			}
			if err := ca.constraints.check(ca, below, &s.work); err != nil {
				return err
			}
		}
	}
	return nil
}

// foreignAnchor tells an unknown CA from the CA of another trust domain,
// which may not speak for this one. It never accepts anything.
func (s *search) foreignAnchor(err *Error, own spiffeid.TrustDomain, roots Roots) *Error {
	if err.Cause != UnknownCA {
		return nil
	}
	for domain, anchors := range roots {
		if domain == own {
			continue
		}
		other := *s
		other.anchors, other.known, other.evidence = anchors, nil, evidence{policy: Off}
		other.path, other.revocation, other.best, other.bestRank = other.path[:0:0], nil, nil, 0
		if other.run() == nil {
			e := refuse(WrongTrustDomain, s.leaf.cert, "it is anchored by a root of %s, which may not speak for %s", domain, own)
			for _, f := range other.path {
				e.Path = append(e.Path, f.cert)
			}
			e.Anchors, e.Work = s.anchors, other.work
			return e
		}
		s.work = other.work
		if other.bestRank == overWork {
			return nil
		}
	}
	return nil
}
