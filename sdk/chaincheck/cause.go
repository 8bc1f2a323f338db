package chaincheck

import (
	"crypto/x509"
	"fmt"
	"strings"
)

// Cause is why a chain was refused, as data: a label of metrics and what
// callers switch on.
type Cause string

// The causes.
const (
	NoCertificate     Cause = "no_certificate"
	UnknownCA         Cause = "unknown_ca"         // no path to a root of the trust domain
	BadSignature      Cause = "bad_signature"      // the named issuer did not sign it
	Expired           Cause = "expired"            //
	NotYetValid       Cause = "not_yet_valid"      //
	WrongSAN          Cause = "wrong_san"          // not exactly one URI that is a workload's SPIFFE ID
	WrongTrustDomain  Cause = "wrong_trust_domain" // no roots for its domain, or anchored by another's
	Revoked           Cause = "revoked"            //
	RevocationUnknown Cause = "revocation_unknown" // Require, and nothing current acquits it
	BadUsage          Cause = "bad_usage"          // CA as leaf, key usage, extended key usage
	Constraint        Cause = "constraint"         // path length, depth, name constraints, critical extensions
	Lifetime          Cause = "lifetime"           // lives longer than accepted
	WeakKey           Cause = "weak_key"           // key or signature algorithm
	Malformed         Cause = "malformed"          // not what RFC 5280 says a certificate looks like
	TooComplex        Cause = "too_complex"        // more work than an honest chain needs
	BadParams         Cause = "bad_params"         // the verifier was asked a question without an answer
)

// Error is a refusal.
type Error struct {
	Cause Cause
	// Subject names the certificate that is at fault; empty when none is.
	Subject string
	// Detail says what is wrong with it.
	Detail string
	// Certificate is the one at fault; may be nil.
	Certificate *x509.Certificate
	// Path is leaf first as far as the best path led: to the anchor when only
	// the path as a whole breaks a rule. Empty when no leaf was read.
	Path []*x509.Certificate
	// Anchors are the roots that were tried: those of the leaf's trust domain,
	// or those given for a server name. Shared: do not change them.
	Anchors []*x509.Certificate
	// Revocation is what was found when Cause is Revoked or RevocationUnknown.
	Revocation Revocation
	// Work is what finding out cost.
	Work Work
}

// Error implements error: cause, certificate, and what is wrong with it.
func (e *Error) Error() string {
	if e.Subject == "" {
		return fmt.Sprintf("chain refused (%s): %s", e.Cause, e.Detail)
	}
	return fmt.Sprintf("chain refused (%s): %s: %s", e.Cause, e.Subject, e.Detail)
}

// Is lets errors.Is compare by cause: errors.Is(err, &Error{Cause: Revoked}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Cause == e.Cause && t.Subject == "" && t.Detail == "" && t.Certificate == nil
}

func refuse(cause Cause, cert *x509.Certificate, format string, args ...any) *Error {
	e := &Error{Cause: cause, Detail: fmt.Sprintf(format, args...), Certificate: cert}
	if cert != nil {
		e.Subject = describe(cert)
	}
	return e
}

// describe names a certificate: by its URI or its subject, and its serial.
// What a stranger wrote is quoted and cut.
func describe(cert *x509.Certificate) string {
	name := cert.Subject.String()
	if len(cert.URIs) > 0 {
		name = cert.URIs[0].String()
	}
	if len(name) > 128 {
		name = name[:128] + "…"
	}
	serial := "?"
	if cert.SerialNumber != nil {
		serial = cert.SerialNumber.Text(16)
	}
	if len(serial) > 40 {
		serial = serial[:40] + "…"
	}
	return fmt.Sprintf("%q (serial %s)", strings.ToValidUTF8(name, "?"), serial)
}
