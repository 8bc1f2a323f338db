package renewal

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// An Issuer signs certificates. Its methods are called from several
// goroutines, return soon after ctx ends, and then return ctx's error.
type Issuer interface {
	// Issue returns a certificate for the request's key. Its error is
	// temporary unless it is a *Failure that says otherwise.
	Issue(ctx context.Context, r *Request) (*Issued, error)
}

// A Finder is an Issuer that can be asked what became of a request, so that
// one that was interrupted does not issue twice. It is asked before a request
// is repeated.
type Finder interface {
	Issuer
	// Find returns what was issued for the request's ID, or ErrNotIssued.
	Find(ctx context.Context, r *Request) (*Issued, error)
}

// ErrNotIssued is the answer of a Finder that nothing was issued.
var ErrNotIssued = errors.New("nothing was issued for this request")

// Request asks for one certificate.
type Request struct {
	// ID names the request. A repetition after an interruption or a temporary
	// failure has the same ID, key and CSR.
	ID string
	// Repeated is true when the request may have been made before.
	Repeated bool
	// Certificate is whose it is.
	Certificate Key
	// Revision that it will have, from 1.
	Revision int
	Issuer   IssuerRef
	// CSR is PKCS #10 (RFC 2986), DER: names, key and, unless the spec forbids
	// it, usages.
	CSR []byte
	// Duration asked for; 0 leaves it to the issuer.
	Duration time.Duration
	IsCA     bool
	// Usages asked for, never empty.
	Usages []KeyUsage
}

// Issued is what an Issuer signed.
type Issued struct {
	// Chain is DER: leaf first, then intermediates; a root at its end is kept.
	Chain [][]byte
	// CA is the issuer's root certificate, DER, where it says; becomes ca.crt.
	CA []byte
}

// A Failure is an error of an Issuer that says what to do about it.
type Failure struct {
	// Permanent: the same request would be refused again. The next attempt
	// waits for the longest backoff, a changed spec or somebody's hand.
	Permanent bool
	// RetryAfter is the least time until the next attempt.
	RetryAfter time.Duration
	Err        error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns Err.
func (f *Failure) Unwrap() error { return f.Err }

// Permanent marks an error as one that trying again does not mend.
func Permanent(format string, args ...any) error {
	return &Failure{Permanent: true, Err: fmt.Errorf(format, args...)}
}

// RetryAfter marks an error as one after which the issuer wants to be left
// alone for d, like HTTP's Retry-After.
func RetryAfter(d time.Duration, format string, args ...any) error {
	return &Failure{RetryAfter: d, Err: fmt.Errorf(format, args...)}
}

// Issuers finds the Issuer of a reference; nil when there is none (yet).
type Issuers func(namespace string, ref IssuerRef) Issuer

// Static is Issuers of a fixed set by IssuerRef.Name, in every namespace.
func Static(byName map[string]Issuer) Issuers {
	return func(_ string, ref IssuerRef) Issuer { return byName[ref.Name] }
}
