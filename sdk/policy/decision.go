package policy

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Cause is why a decision came out as it did.
type Cause string

// The causes. All but CauseAllowed are denials.
const (
	CauseAllowed    Cause = "allowed"     // every policy said true
	CauseDenied     Cause = "denied"      // a policy said false
	CauseUndefined  Cause = "undefined"   // a policy said nothing
	CauseNotBoolean Cause = "not_boolean" // a policy said something else
	CauseDeadline   Cause = "deadline"    // a policy took too long
	CauseThrottled  Cause = "throttled"   // slow evaluations have used up their share
	CauseError      Cause = "error"       // a policy failed, e.g. two rules with different answers
	CauseNoPolicy   Cause = "no_policy"   // none is in force
	CauseBroken     Cause = "broken"      // one does not load, and has no predecessor
	CauseNoPeer     Cause = "no_peer"     // the connection has no verified peer
	CauseNoRoute    Cause = "no_route"    // no route names the request
	CausePath       Cause = "path"        // the path is not canonical
	CauseTooLarge   Cause = "too_large"   // the input is beyond its bounds
	CauseMalformed  Cause = "malformed"   // the request cannot be read in one way
)

var causes = []Cause{CauseAllowed, CauseDenied, CauseUndefined, CauseNotBoolean, CauseDeadline, CauseThrottled, CauseError,
	CauseNoPolicy, CauseBroken, CauseNoPeer, CauseNoRoute, CausePath, CauseTooLarge, CauseMalformed}

// A Refusal is a denial before any policy is asked.
type Refusal struct {
	Cause Cause
	// Detail says what is wrong, without the request's bytes.
	Detail string
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("refused (%s): %s", r.Cause, r.Detail) }

// DecisionID names one decision in logs: random per engine, then counted.
type DecisionID struct{ engine, n uint64 }

// String is 32 hex digits.
func (d DecisionID) String() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], d.engine)
	binary.BigEndian.PutUint64(b[8:], d.n)
	return hex.EncodeToString(b[:])
}

func newEngineID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:])
}

// Loaded names a policy that is in force.
type Loaded struct {
	Name, Version string
}

// A Decision is the answer to one Input.
type Decision struct {
	ID      DecisionID
	Allowed bool
	Cause   Cause
	// Detail says more than Cause, for the log and never for the peer.
	Detail string
	// Policy is the one that denied; zero where Allowed, and where none did.
	Policy Loaded
	// Policies are those in force. Shared: not to be changed.
	Policies []Loaded
	// Duration of the evaluation of all policies.
	Duration time.Duration
}

// A Record is what is known of a decision once it was made: what OnDecision
// gets, and what the log is made of. It holds no header, no path and no
// masked parameter.
type Record struct {
	Decision
	Identity  spiffeid.ID
	Operation string
	// Type and Name of the resource, Name masked where the route says so.
	Type, Name string
	// Method and Route, the pattern that matched, or the full method of gRPC.
	Method, Route string
	// Remote is the peer's network address.
	Remote string
}

const masked = "***"
