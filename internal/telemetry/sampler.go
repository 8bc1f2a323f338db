package telemetry

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Sampler decides which of many like events are written to the log, where
// somebody else decides how many there are: of each kind the first few, then
// one in each interval that tells how many were left out; and of all kinds
// together no more than a second's share. Counters count them all.
type Sampler struct {
	every time.Duration
	burst int
	all   *rate.Limiter
	now   func() time.Time

	mu    sync.Mutex // guards what follows
	kinds map[string]*kind
	swept time.Time
}

type kind struct {
	since time.Time
	room  int // still to be written in this interval
	left  uint64
}

// maxKinds bounds the kinds told apart; further ones share a place.
const maxKinds = 1024

// NewSampler lets burst events of each kind through in each interval.
func NewSampler(burst int, every time.Duration) *Sampler {
	return &Sampler{every: every, burst: burst, all: rate.NewLimiter(1, 50), now: time.Now, kinds: map[string]*kind{}}
}

// Allow reports whether an event of that kind is to be written, and how many
// of its kind were not since the last that was.
func (s *Sampler) Allow(name string) (ok bool, left uint64) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[name]
	if k == nil {
		k = s.makeLocked(name, now)
	}
	if now.Sub(k.since) >= s.every {
		k.since, k.room = now, s.burst
		if k.left > 0 {
			k.room = 1
		}
	}
	if k.room == 0 || !s.all.AllowN(now, 1) {
		k.left++
		return false, 0
	}
	k.room--
	left, k.left = k.left, 0
	return true, left
}

func (s *Sampler) makeLocked(name string, now time.Time) *kind {
	if len(s.kinds) >= maxKinds && now.Sub(s.swept) >= time.Second {
		s.swept = now
		for other, k := range s.kinds {
			if now.Sub(k.since) >= s.every && k.left == 0 {
				delete(s.kinds, other)
			}
		}
	}
	if len(s.kinds) >= maxKinds {
		name = "" // shared by all that are too many
		if k := s.kinds[name]; k != nil {
			return k
		}
	}
	k := &kind{since: now, room: s.burst}
	s.kinds[name] = k
	return k
}
