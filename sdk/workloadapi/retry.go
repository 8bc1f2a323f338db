package workloadapi

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry delays unless configured: full jitter between minDelay and a ceiling
// that doubles from firstCeiling to lastCeiling.
const (
	minDelay     = 50 * time.Millisecond
	firstCeiling = 250 * time.Millisecond
	lastCeiling  = 10 * time.Second
)

// Backoff bounds the waits between attempts to reach the Workload API: each
// is a random time between Min and a ceiling that doubles, from five times
// Min up to Max, and starts again from the bottom after every answer.
type Backoff struct {
	Min time.Duration // zero is 50 ms
	Max time.Duration // zero is 10 s
}

// retry is where one loop of attempts stands.
type retry struct {
	backoff Backoff
	ceiling time.Duration
}

func (r *retry) reset() { r.ceiling = 0 }

func (r *retry) next() time.Duration {
	low, high := r.backoff.Min, r.backoff.Max
	if low <= 0 {
		low = minDelay
	}
	if high <= 0 {
		high = lastCeiling
	}
	high = max(low, high)
	if r.ceiling == 0 {
		r.ceiling = min(high, low*firstCeiling/minDelay)
	}
	delay := min(high, low+rand.N(r.ceiling))
	r.ceiling = min(2*r.ceiling, high)
	return delay
}

// wait returns ctx's error when that ends first.
func (r *retry) wait(ctx context.Context) error {
	timer := time.NewTimer(r.next())
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
