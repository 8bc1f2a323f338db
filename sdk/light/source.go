package light

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/holder"
)

// State is how a Source's subscription stands.
type State = holder.State

// The states.
const (
	Connecting  = holder.Connecting  // nothing has come yet
	Current     = holder.Current     // the last answer is what the agent has
	NoIdentity  = holder.NoIdentity  // the agent answers that this process has none, or not the one that is wanted
	Unavailable = holder.Unavailable // no agent answers; the last answer still holds until its certificate ends
	Malformed   = holder.Malformed   // an answer made no sense and was dropped
)

// Status says how a Source stands:
//
//	State     State         // Connecting, Current, NoIdentity, Unavailable or Malformed
//	Since     time.Time     // when State began
//	Err       error         // why; nil in Connecting and Current
//	ID        spiffeid.ID   // of the certificate that is served; zero without one
//	NotAfter  time.Time     // its end
//	Answered  time.Time     // when the last good answer came; zero before the first
//	Answers   uint64        // good ones
//	Malformed uint64        // answers, and parts of them, that were dropped
//	Denials   int           // what the deny set holds; -1 while the socket offers none
//	Clock     string        // empty, or why this machine's clock seems to be wrong
type Status = holder.Status

// Source is an identity.Source that one stream of the Workload API feeds. It
// behaves like sdk/workloadapi's: what came last is served until the
// certificate ends, and then Current's error is an *identity.Ended.
type Source struct {
	c      Config
	holder *holder.Holder
	life   *holder.Life
	sizes  atomic.Pointer[Sizes]
}

var _ identity.Source = (*Source)(nil)

// NewSource returns a source that has nothing until Run runs; see Open for
// both in one. The error is one of configuration.
func NewSource(c Config) (*Source, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Source{c: c, holder: c.holder(c.Logger), life: holder.NewLife()}, nil
}

// Open returns a running source that has its first identity; Close ends it.
// It waits for that until ctx ends; the error then says what was waited for.
// The source outlives ctx.
func Open(ctx context.Context, c Config) (*Source, error) {
	s, err := NewSource(c)
	if err != nil {
		return nil, err
	}
	_ = s.life.Begin() // the first
	go func() { _ = s.life.Run(context.Background(), s.run) }()
	if _, err := identity.Wait(ctx, s); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Run keeps the source current until ctx ends or Close is called, and then
// returns nil. It may be called once. An error is a Workload API that refused
// the request itself; it, too, is returned only at the end, since what is
// served holds until then.
func (s *Source) Run(ctx context.Context) error {
	if err := s.life.Begin(); err != nil {
		return err
	}
	return s.life.Run(ctx, s.run)
}

// Close ends Run and waits for it. What was served last is served on.
func (s *Source) Close() error {
	s.life.Close()
	return nil
}

// Current implements identity.Source.
func (s *Source) Current() (*identity.Snapshot, <-chan struct{}, error) { return s.holder.Current() }

// Status says how the source stands, for health pages and tests.
func (s *Source) Status() Status { return s.holder.Status() }

// State is how the subscription stands, since when, and why.
func (s *Source) State() (state State, since time.Time, err error) {
	st := s.holder.Status()
	return st.State, st.Since, st.Err
}

// Sizes is what the last good answer weighed; zero before the first.
func (s *Source) Sizes() Sizes {
	if sizes := s.sizes.Load(); sizes != nil {
		return *sizes
	}
	return Sizes{}
}

func (s *Source) run(ctx context.Context) error {
	retry := holder.Retry{Backoff: s.c.Backoff}
	for {
		err := s.subscribe(ctx, &retry)
		if ctx.Err() != nil {
			return nil
		}
		var status *StatusError
		if !errors.As(err, &status) {
			status = &StatusError{Code: CodeUnavailable}
		}
		switch status.Code {
		case CodePermissionDenied:
			s.holder.Became(NoIdentity, err)
		case CodeInvalidArgument: // SPIFFE Workload Endpoint 6: not to be retried
			s.holder.Became(Unavailable, err)
			for s.wait(ctx, time.Hour) {
			}
			return fmt.Errorf("workload API refused the request itself: %w", err)
		default:
			s.holder.Became(Unavailable, err)
		}
		if !s.wait(ctx, retry.Next()) {
			return nil
		}
	}
}

// wait goes on ending what has ended; it returns false at the end of ctx.
func (s *Source) wait(ctx context.Context, d time.Duration) bool {
	for until := time.Now().Add(d); ; {
		left := time.Until(until)
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, s.holder.Check()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// subscribe reads one connection to its end.
func (s *Source) subscribe(ctx context.Context, retry *holder.Retry) error {
	sub, err := open(ctx, &s.c, func(sizes Sizes) { s.sizes.Store(&sizes) })
	if err != nil {
		return err
	}
	defer sub.close()
	patience := time.Now().Add(s.c.Timeout)
	for {
		wake := time.Now().Add(s.holder.Check())
		if sub.answers == 0 && patience.Before(wake) {
			wake = patience
		}
		if !sub.reopen.IsZero() && sub.reopen.Before(wake) {
			wake = sub.reopen
		}
		_ = sub.nc.SetReadDeadline(wake)
		before := sub.answers
		switch err := sub.step(s.holder); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if sub.answers == 0 && !time.Now().Before(patience) {
				return fmt.Errorf("no answer within %s", s.c.Timeout)
			}
			continue
		case err != nil:
			return err
		}
		if sub.answers > before {
			retry.Reset()
		}
	}
}
