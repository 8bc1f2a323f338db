// Package node answers "which node is this": a Prover on the machine and an
// Attestor on the control plane, one pair per method, side by side. What is
// remembered about attested nodes is package registry's.
package node

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds on what an unauthenticated caller may send.
const (
	MaxPayload   = 64 << 10
	MaxChallenge = 64 << 10
	MaxSteps     = 8
	// MaxName keeps a node's name inside a DNS name and a SPIFFE ID (SPIFFE-ID 2.3).
	MaxName = 253
)

// Attempt is one caller's try to attest.
type Attempt struct {
	// Payload is the method's proof from the caller's first message.
	Payload []byte
	// Peer is the caller's address; invalid when the transport has none.
	Peer netip.Addr
	// Challenge sends bytes to the caller's Prover and returns its answer. At
	// most MaxSteps times per attempt.
	Challenge func(ctx context.Context, challenge []byte) (response []byte, err error)
}

// Claim is what an Attestor found proved. It takes effect when the registry
// admits it.
type Claim struct {
	// Node is the name proved: one path segment of a SPIFFE ID.
	Node string
	// Spend is written in the same transaction that records the node, and only
	// if every condition in it still holds; so a proof that may be used once
	// is used once.
	Spend []Spend
}

// Spend replaces one stored value, if it is still as the Attestor read it.
type Spend struct {
	Key      string
	Revision int64 // the value's, when read
	Value    []byte
}

// Attestor judges proofs of one method, on the control plane.
type Attestor interface {
	// Method names it in AttestStart.method, e.g. "join_token".
	Method() string
	// Attest returns what the attempt proves; fault.Denied when it proves
	// nothing. It changes nothing: the registry does, with the Claim.
	Attest(ctx context.Context, attempt Attempt) (Claim, error)
}

// Prover is the other end of an Attestor, on the node.
type Prover interface {
	Method() string
	// Payload is the proof for the first message.
	Payload(ctx context.Context) ([]byte, error)
	// Respond answers a challenge.
	Respond(ctx context.Context, challenge []byte) ([]byte, error)
}

// Proof is a Prover for a method whose proof is bytes the node was given,
// such as a join token.
func Proof(method string, payload []byte) Prover { return proof{method, payload} }

type proof struct {
	method  string
	payload []byte
}

func (p proof) Method() string                          { return p.method }
func (p proof) Payload(context.Context) ([]byte, error) { return p.payload, nil }
func (p proof) Respond(context.Context, []byte) ([]byte, error) {
	return nil, fmt.Errorf("the control plane sent a challenge, and method %q has none", p.method)
}

// JoinToken is the method name of join tokens.
const JoinToken = "join_token"

const agentPath = "/legation/agent/"

// ValidateName reports, as fault.Invalid, why a name cannot be a node's.
func ValidateName(name string) error {
	if len(name) > MaxName {
		return fault.New(fault.Invalid, "node name of %d bytes: at most %d are allowed", len(name), MaxName)
	}
	if err := spiffeid.ValidatePathSegment(name); err != nil {
		return fault.New(fault.Invalid, "node name %q cannot be a segment of a SPIFFE ID path: %w (use letters, digits, '.', '-' and '_')", name, err)
	}
	return nil
}

// ID is a node's SPIFFE ID, spiffe://<trust domain>/legation/agent/<name>.
func ID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	if err := ValidateName(name); err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, agentPath+name)
}

// ServerID is the SPIFFE ID that every replica of the control plane shows.
func ServerID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromPath(td, "/legation/server")
}

// NameOf is the inverse of ID: fault.Denied for an ID that is no agent's of
// this trust domain.
func NameOf(td spiffeid.TrustDomain, id spiffeid.ID) (string, error) {
	name, ok := strings.CutPrefix(id.Path(), agentPath)
	if !ok || id.TrustDomain() != td || ValidateName(name) != nil {
		return "", fault.New(fault.Denied, "%s is not an agent of trust domain %s", id, td)
	}
	return name, nil
}
