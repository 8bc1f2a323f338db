package holder

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff bounds the waits between attempts to reach the Workload API: each
// is a random time between Min and a ceiling that doubles, from five times
// Min up to Max, and starts again from the bottom after every answer.
type Backoff struct {
	Min time.Duration // zero is 50 ms
	Max time.Duration // zero is 10 s
}

// Retry is where one loop of attempts stands.
type Retry struct {
	Backoff Backoff
	// Hurry ends a wait, and starts again from the bottom; may be nil.
	Hurry   <-chan struct{}
	ceiling time.Duration
}

// Reset starts again from the bottom.
func (r *Retry) Reset() { r.ceiling = 0 }

// Next is the next wait.
func (r *Retry) Next() time.Duration {
	low, high := r.Backoff.Min, r.Backoff.Max
	if low <= 0 {
		low = 50 * time.Millisecond
	}
	if high <= 0 {
		high = 10 * time.Second
	}
	high = max(low, high)
	if r.ceiling == 0 {
		r.ceiling = min(high, 5*low)
	}
	delay := min(high, low+rand.N(r.ceiling))
	r.ceiling = min(2*r.ceiling, high)
	return delay
}

// Wait returns ctx's error when that ends first.
func (r *Retry) Wait(ctx context.Context) error {
	timer := time.NewTimer(r.Next())
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.Hurry:
		r.Reset()
		return nil
	case <-timer.C:
		return nil
	}
}
