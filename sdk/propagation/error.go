package propagation

import (
	"fmt"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Cause is why a request was refused, as data: a label of metrics, and what
// callers switch on.
type Cause string

// The causes.
const (
	NoPeer       Cause = "no_peer"       // no verified peer, or (Sidecar) not from the sidecar
	NoToken      Cause = "no_token"      // RequireToken, and there is none
	Malformed    Cause = "malformed"     // a header that is not as the package says
	TooLarge     Cause = "too_large"     // longer than MaxBytes
	TooDeep      Cause = "too_deep"      // more hops than MaxDepth
	BadToken     Cause = "bad_token"     // a token that sdk/jwtcheck refuses
	Expired      Cause = "expired"       // a token that has expired
	NotForUs     Cause = "not_for_us"    // the last token's audience is another
	WrongPeer    Cause = "wrong_peer"    // the last token is not the peer's: it was taken from somebody
	WrongOrder   Cause = "wrong_order"   // a token's audience is not the next one's subject
	Unlinked     Cause = "unlinked"      // a token that does not name the one before it
	Truncated    Cause = "truncated"     // the first token names one before it
	OtherDomain  Cause = "other_domain"  // a hop of a trust domain that is not accepted
	NotReady     Cause = "not_ready"     // our own identity or keys are not there yet
	NoChainSpace Cause = "no_chain_room" // the chain cannot grow by us
)

// Error is a refused chain.
type Error struct {
	Cause Cause
	// Hop is which token is at fault, 1 is the origin's; 0 is none of them.
	Hop int
	// Of is how many there are.
	Of int
	// ID is whose token it claims to be; zero where that cannot be read. It is
	// not verified.
	ID spiffeid.ID
	// Err says what was found.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Hop > 0 && !e.ID.IsZero():
		return fmt.Sprintf("calling chain refused at hop %d of %d (%s): %v", e.Hop, e.Of, e.ID, e.Err)
	case e.Hop > 0:
		return fmt.Sprintf("calling chain refused at hop %d of %d: %v", e.Hop, e.Of, e.Err)
	}
	return fmt.Sprintf("calling chain refused: %v", e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Status is the HTTP status of the answer: 400 for what cannot be read, 503
// while we are not ready, 403 for everything else.
func (e *Error) Status() int {
	switch e.Cause {
	case Malformed, TooLarge, TooDeep:
		return http.StatusBadRequest
	case NotReady:
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

func refuse(c Cause, format string, args ...any) *Error {
	return &Error{Cause: c, Err: fmt.Errorf(format, args...)}
}
