// Package identity answers "what do I present, and whom do I believe, right
// now". It is the seam between where identities come from (the Workload API,
// files, ACME, memory) and what uses them (sdk/mtls, sdk/grpccreds); it
// verifies nothing itself.
package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// Snapshot is what a workload presents and believes at one moment. It never
// changes; a change makes a new one.
type Snapshot struct {
	// ID is the SPIFFE ID of Certificate; zero without one.
	ID spiffeid.ID
	// Certificate is what is presented: the chain leaf first, roots left out,
	// with Leaf set. Nil for one that only verifies others.
	Certificate *tls.Certificate
	// Trust is what peers are verified with; never nil.
	Trust *chaincheck.Trust
}

// A Source has the current Snapshot and says when there is another.
type Source interface {
	// Current never blocks and allocates nothing. The channel is closed when
	// Current would answer something else. The error says why there is no
	// Snapshot, and what is being done about it; it is a *NotReady until the
	// first one came.
	Current() (*Snapshot, <-chan struct{}, error)
}

// NotReady is the error of a Source that has had no Snapshot yet.
type NotReady struct {
	// Source names where the identity is awaited from, e.g. the address of
	// the Workload API.
	Source string
	// Err is what went wrong so far; nil when nothing has.
	Err error
}

// Error implements error.
func (e *NotReady) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("no identity yet: waiting for %s", e.Source)
	}
	return fmt.Sprintf("no identity yet: waiting for %s: %v", e.Source, e.Err)
}

// Unwrap returns Err.
func (e *NotReady) Unwrap() error { return e.Err }

// Wait returns the first Snapshot that a source has. When ctx ends first, the
// error says both that and what the source waits for, as of then.
func Wait(ctx context.Context, s Source) (*Snapshot, error) {
	for {
		ended := context.Cause(ctx) // before it is asked: what it says is not older
		snapshot, changed, err := s.Current()
		if err == nil {
			return snapshot, nil
		}
		if ended != nil {
			return nil, fmt.Errorf("%w: %w", ended, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// Ended is the error of a Source whose last certificate ended before another
// came.
type Ended struct {
	// Source names where the identity is awaited from.
	Source string
	// ID and NotAfter are the last certificate's.
	ID       spiffeid.ID
	NotAfter time.Time
	// Since is when Source last had a good answer.
	Since time.Time
	// Err is what is wrong with Source; nil when it answers and has nothing
	// newer.
	Err error
}

// Error implements error.
func (e *Ended) Error() string {
	last := fmt.Sprintf("the certificate of %s ended at %s", e.ID, e.NotAfter.UTC().Format(time.RFC3339))
	if e.Err == nil {
		return fmt.Sprintf("%s and %s has no newer one", last, e.Source)
	}
	return fmt.Sprintf("%s and %s has been away since %s: %v", last, e.Source, e.Since.UTC().Format(time.RFC3339), e.Err)
}

// Unwrap returns Err.
func (e *Ended) Unwrap() error { return e.Err }
