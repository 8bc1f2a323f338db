package jwtcheck

import "fmt"

// Cause is why a token was refused, as data: a label of metrics, and what
// callers switch on.
type Cause string

// The causes.
const (
	TooLarge           Cause = "too_large"            // longer than what is looked at
	Malformed          Cause = "malformed"            // not JWS compact serialisation
	BadHeader          Cause = "bad_header"           // members that a JWT-SVID's header has not, or lacks
	WrongAlgorithm     Cause = "wrong_algorithm"      // alg is not allowed, or is not the key's
	BadClaims          Cause = "bad_claims"           // claims missing, twice, or of the wrong type
	BadSubject         Cause = "bad_subject"          // sub is no workload's SPIFFE ID
	UnknownTrustDomain Cause = "unknown_trust_domain" // no keys of the subject's domain are known
	UnknownKey         Cause = "unknown_key"          // the domain has no such key
	BadSignature       Cause = "bad_signature"        // the key did not sign this
	Expired            Cause = "expired"
	NotYetValid        Cause = "not_yet_valid"
	WrongAudience      Cause = "wrong_audience"
)

// Error is a refused token.
type Error struct {
	Cause  Cause
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return e.Detail }

func refuse(c Cause, format string, args ...any) error {
	return &Error{Cause: c, Detail: fmt.Sprintf(format, args...)}
}
