package renewal

import (
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"time"
)

// planner spreads renewals: it knows how many are planned for each minute.
type planner struct {
	mu    sync.Mutex
	seed  maphash.Seed
	slots map[int64]int // minute of Unix time to renewals planned
	of    map[Key]int64 // the minute of each certificate
	storm map[int64]int // minute to overdue renewals that were put there, begun or not
}

const slot = time.Minute

// candidates are how many minutes of a window are looked at: so few suffice
// to keep the fullest close to the mean.
const candidates = 64

func newPlanner() *planner {
	return &planner{seed: maphash.MakeSeed(), slots: make(map[int64]int), of: make(map[Key]int64), storm: make(map[int64]int)}
}

func minuteOf(t time.Time) int64 { return t.Unix() / int64(slot/time.Second) }

// note records when a certificate is planned.
func (p *planner) note(k Key, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(k, minuteOf(at))
}

func (p *planner) noteLocked(k Key, minute int64) {
	if old, ok := p.of[k]; ok {
		if old == minute {
			return
		}
		p.leaveLocked(old)
	}
	p.of[k] = minute
	p.slots[minute]++
}

func (p *planner) leaveLocked(minute int64) {
	if p.slots[minute]--; p.slots[minute] <= 0 {
		delete(p.slots, minute)
	}
}

// forget removes a certificate.
func (p *planner) forget(k Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.of[k]; ok {
		p.leaveLocked(old)
		delete(p.of, k)
	}
}

// pick chooses a moment in [from, to] whose minute has the fewest renewals.
func (p *planner) pick(k Key, from, to time.Time) time.Time {
	if !to.After(from) {
		p.note(k, to)
		return to
	}
	r := rand.New(rand.NewPCG(maphash.String(p.seed, k.String()), uint64(to.Unix())))
	p.mu.Lock()
	defer p.mu.Unlock()
	first, last := minuteOf(from), minuteOf(to)
	minutes := last - first + 1
	best, load := last, int(^uint(0)>>1)
	start := r.Int64N(minutes)
	step := max(1, minutes/candidates)
	for i := range min(minutes, candidates) {
		m := first + (start+i*step)%minutes
		n := p.slots[m]
		if p.of[k] == m {
			n--
		}
		if n < load {
			best, load = m, n
		}
	}
	p.noteLocked(k, best)
	at := time.Unix(best*60+r.Int64N(60), 0)
	if at.Before(from) {
		return from
	}
	if at.After(to) {
		return to
	}
	return at
}

// firstFit chooses the first minute from now on that has fewer than rate
// renewals, not after latest; the emptiest when there is none.
func (p *planner) firstFit(k Key, now, latest time.Time, rate int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := minuteOf(now)
	last := min(max(first, minuteOf(latest)), first+24*60)
	for m := range p.storm {
		if m < first || m > first+2*24*60 { // over, or the clock went back
			delete(p.storm, m)
		}
	}
	load := func(m int64) int { return max(p.slots[m], p.storm[m]) }
	best := first
	for m := first; m <= last; m++ {
		if n := load(m); n < rate {
			best = m
			break
		} else if n < load(best) {
			best = m
		}
	}
	p.noteLocked(k, best)
	p.storm[best]++
	if best == first {
		return now
	}
	return time.Unix(best*60+rand.Int64N(60), 0)
}
