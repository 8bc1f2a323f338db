package chaincheck

import (
	"bytes"
	"context"
	"crypto/x509"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// evidence is what one verification knows of revocation.
type evidence struct {
	policy Policy
	id     spiffeid.ID // of the leaf; zero for a server of the web PKI
	denied *DenySet
	crls   *CRLSet
	ocsp   *OCSP

	staple   []byte
	response *ocspResponse   // staple, parsed when first looked at
	stapled  []stapledAnswer // memo, by issuer key

	context context.Context // until waited, the caller's
	cancel  context.CancelFunc
}

type stapledAnswer struct {
	spki   []byte
	answer *ocspAnswer
	why    string
}

const (
	maxWaits    = 4           // OCSP answers that one verification waits for
	unknownHold = time.Minute // how long "unknown, but accepted" is not asked again
)

// checkRevocation judges each link, the leaf last: whether a CA still counts
// comes before what it says.
func (s *search) checkRevocation() *Error {
	if cap(s.revocation) < len(s.path) {
		s.revocation = make([]Revocation, len(s.path))
	}
	s.revocation = s.revocation[:len(s.path)]
	for i := len(s.path) - 1; i >= 0; i-- {
		r := s.judge(i)
		s.revocation[i] = r
		child := s.path[i].cert
		switch {
		case r.Status == StatusRevoked:
			return refuseRevocation(Revoked, child, r, "%s", r)
		case r.Status != StatusUnknown:
		case s.policy == Require:
			return refuseRevocation(RevocationUnknown, child, r, "%s", r)
		case r.disowned:
			return refuseRevocation(RevocationUnknown, child, r, "%s, and no CRL acquits it", r)
		}
	}
	return s.checkStaple()
}

func refuseRevocation(cause Cause, cert *x509.Certificate, r Revocation, format string, args ...any) *Error {
	e := refuse(cause, cert, format, args...)
	e.Revocation = r
	return e
}

// judge says what is known of path[i]. Whoever says revoked wins; then a list
// counts most, since it is pushed to us, then what the peer stapled, then what
// OCSP remembers, and only then anyone is asked.
func (s *search) judge(i int) Revocation {
	child := s.path[i].cert
	var issuer *x509.Certificate
	if i+1 < len(s.path) {
		issuer = s.path[i+1].cert
	}
	if d := s.denial(i, child, issuer); d != nil {
		return Revocation{Status: StatusRevoked, Source: SourceDenySet, RevokedAt: d.At, Why: d.String()}
	}
	if s.policy == Off || issuer == nil {
		return Revocation{}
	}
	crl, found := s.crls.find(child, issuer, s.now, &s.work)
	if crl.Status == StatusRevoked {
		return crl
	}
	r := s.judgeAnswers(i, child, issuer, crl)
	if r.Status == StatusUnknown && !found {
		r.Why = noList(issuer).Why + strings.TrimSuffix("; "+r.Why, "; ")
	}
	return r
}

// judgeAnswers adds what OCSP says to what a list said.
func (s *search) judgeAnswers(i int, child, issuer *x509.Certificate, best Revocation) Revocation {
	if i == 0 && len(s.staple) > 0 {
		if best = better(best, s.judgeStaple(child, issuer)); best.Status == StatusRevoked {
			return best
		}
	}
	if s.ocsp == nil {
		return best
	}
	if a := s.ocsp.known(child, issuer, s.now); a != nil {
		best = better(best, a.judge(SourceOCSP, issuer, s.now, s.crls, s.denied, &s.work))
	}
	if best.Status != StatusUnknown || best.disowned {
		return best
	}
	return better(best, s.wait(child, issuer))
}

func (s *search) denial(i int, child, issuer *x509.Certificate) *Denial {
	if s.denied.Len() == 0 {
		return nil
	}
	if i == 0 {
		if d := s.denied.identity(s.id); d != nil {
			return d
		}
	}
	return s.denied.certificate(child, issuer)
}

// better joins what two sources say. Between two that acquit, the first
// decides; of two that cannot, both tell why.
func better(a, b Revocation) Revocation {
	switch {
	case b.Status == StatusRevoked:
		return b
	case a.Status == StatusGood:
		return a
	case b.Status == StatusGood:
		return b
	case b.Why != "":
		b.Why = strings.TrimPrefix(a.Why+"; "+b.Why, "; ")
		b.disowned = a.disowned || b.disowned
		return b
	}
	return a
}

// judgeStaple reads the stapled response once, and checks it once for each
// key that may have issued the leaf.
func (s *search) judgeStaple(child, issuer *x509.Certificate) Revocation {
	for i := range s.stapled {
		if m := &s.stapled[i]; bytes.Equal(m.spki, issuer.RawSubjectPublicKeyInfo) {
			return s.judgeAnswer(m, issuer)
		}
	}
	m := stapledAnswer{spki: issuer.RawSubjectPublicKeyInfo}
	var err error
	if s.response == nil {
		s.response, err = parseOCSP(s.staple)
	}
	if err == nil {
		m.answer, err = s.response.answerFor(child, issuer, &s.work)
	}
	if err != nil {
		m.answer, m.why = nil, "the stapled OCSP response does not count: "+err.Error()
		s.response = nil
	}
	s.stapled = append(s.stapled, m)
	return s.judgeAnswer(&m, issuer)
}

func (s *search) judgeAnswer(m *stapledAnswer, issuer *x509.Certificate) Revocation {
	if m.answer == nil {
		return Revocation{Status: StatusUnknown, Source: SourceStaple, Why: m.why}
	}
	return m.answer.judge(SourceStaple, issuer, s.now, s.crls, s.denied, &s.work)
}

// wait asks the responders that child names, all links together no longer
// than OCSPConfig.Timeout.
func (s *search) wait(child, issuer *x509.Certificate) Revocation {
	if s.work.Waits >= maxWaits {
		return unknown("%d OCSP answers were waited for, more are not", maxWaits)
	}
	if s.cancel == nil {
		if s.context == nil {
			s.context = context.Background()
		}
		s.context, s.cancel = context.WithTimeout(s.context, s.ocsp.config.Timeout)
	}
	s.work.Waits++
	a, why, retry := s.ocsp.fetch(s.context, child, issuer, s.now)
	if a == nil {
		r := unknown("%s", why)
		r.until = retry
		return r
	}
	r := a.judge(SourceOCSP, issuer, s.now, s.crls, s.denied, &s.work)
	if r.Status == StatusUnknown && why != "" {
		r.Why += "; " + why
		r.until = retry
	}
	return r
}

// stop gives back what wait took.
func (s *search) stop() {
	if s.cancel != nil {
		s.cancel()
	}
}

// checkStaple: RFC 7633 4.2.2. crypto/tls cannot ask a client for a staple,
// so a client whose certificate demands one needs an OCSP answer from
// anywhere; so does a certificate outside a handshake.
func (s *search) checkStaple() *Error {
	if s.policy == Off || !s.leaf.mustStaple() || len(s.path) < 2 {
		return nil
	}
	issuer := s.path[1].cert
	found := Revocation{Status: StatusUnknown, Why: "none was stapled"}
	if len(s.staple) > 0 {
		found = s.judgeStaple(s.leaf.cert, issuer)
	}
	if found.Status != StatusGood && s.usage != Server && s.ocsp != nil {
		if a := s.ocsp.known(s.leaf.cert, issuer, s.now); a != nil {
			found = better(found, a.judge(SourceOCSP, issuer, s.now, s.crls, s.denied, &s.work))
		}
		if found.Status != StatusGood {
			found = better(found, s.wait(s.leaf.cert, issuer))
		}
	}
	switch found.Status {
	case StatusGood:
		s.revocation[0] = found
		return nil
	case StatusRevoked:
		return refuseRevocation(Revoked, s.leaf.cert, found, "%s", found)
	}
	return refuseRevocation(RevocationUnknown, s.leaf.cert, found, "it demands an OCSP answer with the handshake (RFC 7633) and there is none that counts: %s", found.Why)
}

// window is the time for which the verdict is known to be the same: from now,
// until the first certificate, list or answer that it rests on ends, or
// another certificate begins to be valid, which might lead elsewhere.
func (s *search) window() (since, until time.Time) {
	until = s.leaf.cert.NotAfter
	for i, f := range s.path {
		until = earlier(until, f.cert.NotAfter)
		switch r := &s.revocation[i]; {
		case r.Status == StatusGood && r.Source == SourceOCSP:
			// Looked at again in time to be renewed before anyone waits.
			until = earlier(until, earlier(r.until, s.now.Add(max(r.NextUpdate.Sub(s.now)/4*3, ocspBackoff))))
		case r.Status == StatusGood:
			until = earlier(until, r.until)
		case r.Status == StatusUnknown && r.until.After(s.now):
			until = earlier(until, earlier(r.until, s.now.Add(unknownHold)))
		case r.Status == StatusUnknown:
			until = earlier(until, s.now.Add(unknownHold))
		}
	}
	for i := range s.known {
		if begin := s.known[i].cert.NotBefore; begin.After(s.now) {
			until = earlier(until, begin.Add(-time.Second))
		}
	}
	return s.now, until
}
