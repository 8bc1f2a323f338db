// Package clock answers "what time is it" for everything that compares with
// dates in certificates. Timers come from package time (testing/synctest
// fakes them); wall time is injected, so that a test can make it jump.
package clock

import (
	"context"
	"sync"
	"time"
)

// Clock reads wall time, without a monotonic reading.
type Clock interface {
	Now() time.Time
}

// System is the machine's clock.
var System Clock = system{}

type system struct{}

func (system) Now() time.Time { return time.Now().Round(0) }

// recheck bounds how long a sleeper trusts its timer: wall time may jump and
// machines are suspended.
const recheck = 30 * time.Second

// Until waits until wall time reaches t, looking again at least every 30 s.
// It returns ctx's error when ctx ends first.
func Until(ctx context.Context, c Clock, t time.Time) error {
	for {
		d := t.Sub(c.Now())
		if d <= 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(min(d, recheck))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// Skewed is a clock that tests move: real time plus an offset.
type Skewed struct {
	mu     sync.Mutex
	offset time.Duration
}

// Now returns real time plus the offset.
func (s *Skewed) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Round(0).Add(s.offset)
}

// Jump moves the clock by d.
func (s *Skewed) Jump(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += d
}
