// Package custody answers "where do the authorities' keys live, and who signs
// with them". A provider keeps keys; it never hands one out.
package custody

import (
	"context"
	"crypto"
	"regexp"

	"github.com/legation-io/legation/internal/fault"
)

// Algorithm is a kind of key.
type Algorithm string

// The algorithms.
const (
	ECDSAP256 Algorithm = "ecdsa-p256"
	ECDSAP384 Algorithm = "ecdsa-p384"
)

// A Provider keeps issuing keys under names that are never reused. It is safe
// for concurrent use, and so are its signers, which take a digest and answer
// in ASN.1 (crypto.Signer of an ECDSA key).
type Provider interface {
	// Create makes a key and returns its signer once the key is durable. It
	// returns fault.Conflict when the name is taken, fault.Invalid when the
	// name or the algorithm cannot be.
	Create(ctx context.Context, name string, alg Algorithm) (crypto.Signer, error)
	// Open returns fault.NotFound when no key has that name.
	Open(ctx context.Context, name string) (crypto.Signer, error)
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,62})(/[a-z0-9]([a-z0-9.-]{0,62})){0,3}$`)

// CheckName returns fault.Invalid unless name is one to four segments of
// lower-case letters, digits, '.' and '-', separated by '/'.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fault.New(fault.Invalid, "key name %q: write one to four segments of lower-case letters, digits, '.' and '-', separated by '/'", name)
	}
	return nil
}
