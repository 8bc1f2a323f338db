package ledger

import (
	"sync"
	"time"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
)

const (
	// maxStep is how far wall time may move against elapsed time between two
	// looks before issuing stops.
	maxStep = 5 * time.Minute
	// maxBehind is how far replicas' clocks may be apart: wall time may lie
	// this much before the journal's newest record.
	maxBehind = 30 * time.Second
	// settle is how long a stepped clock must run steadily to be believed: a
	// resumed virtual machine steps forward and is right.
	settle = 10 * time.Minute
)

// Guard says whether wall time may be trusted for issuing. It is safe for
// concurrent use. Three rules, all recovering by themselves:
//
//   - Wall time that moved more than five minutes further, or less, than the
//     time that elapsed since it was last believed has stepped. Issuing stops
//     until the clock is back where it should be, or has run steadily at its
//     new place for ten minutes.
//   - Wall time more than 30 s before the newest record of the journal (any
//     replica's) stops issuing until it has passed that record.
//   - A clock that was never seen before is believed, if the second rule lets it.
type Guard struct {
	clock clock.Clock

	mu         sync.Mutex // guards what follows
	newest     time.Time  // IssuedAt of the newest record
	wall       time.Time  // wall time when last believed
	at         time.Time  // monotonic time of that moment
	suspect    time.Time  // wall time when a step was first seen; zero: none
	suspectAt  time.Time  // monotonic time of that moment
	ignoreLast bool
}

// NewGuard believes the clock as it is now.
func NewGuard(c clock.Clock) *Guard {
	return &Guard{clock: c, wall: c.Now(), at: time.Now()}
}

// Clock is the one that is judged.
func (g *Guard) Clock() clock.Clock { return g.clock }

// saw notes a record's time.
func (g *Guard) saw(issued time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if issued.After(g.newest) {
		g.newest = issued
	}
}

// Now returns wall time while it is believed, else the time that it should
// be: when it was last believed plus what elapsed since. Lists of revoked
// certificates are dated by it, so that a wrong clock cannot date one in the
// future, which every Envoy would answer by refusing everyone.
func (g *Guard) Now() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, at := g.clock.Now(), time.Now()
	if g.stepLocked(wall, at) != 0 {
		return g.wall.Add(at.Sub(g.at))
	}
	return wall
}

// trusted is Check for a metric.
func (g *Guard) trusted() float64 {
	if _, err := g.Check(); err != nil {
		return 0
	}
	return 1
}

// Check returns the wall time to issue at, or fault.Unavailable with the
// reason why nothing may be issued now.
func (g *Guard) Check() (time.Time, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, at := g.clock.Now(), time.Now()
	if step := g.stepLocked(wall, at); step != 0 {
		return wall, fault.New(fault.Unavailable,
			"issue nothing: the machine's clock stepped by %s to %s; issuing resumes when it is right again, or has run steadily for %s: check the time service (timedatectl, chronyc tracking)",
			step.Round(time.Second), wall.UTC().Format(time.RFC3339), settle)
	}
	if behind := g.newest.Sub(wall); behind > maxBehind && !g.ignoreLast {
		return wall, fault.New(fault.Unavailable,
			"issue nothing: the machine's clock says %s, which is %s before the newest record of the issuance journal (%s); issuing resumes when the clock has passed it: check the time service (timedatectl, chronyc tracking)",
			wall.UTC().Format(time.RFC3339), behind.Round(time.Second), g.newest.UTC().Format(time.RFC3339))
	}
	return wall, nil
}

// stepLocked returns by how much wall time stepped, 0 while it is believed.
func (g *Guard) stepLocked(wall, at time.Time) time.Duration {
	step := wall.Sub(g.wall) - at.Sub(g.at)
	if step.Abs() <= maxStep {
		g.wall, g.at, g.suspect = wall, at, time.Time{}
		return 0
	}
	if !g.suspect.IsZero() {
		steady := at.Sub(g.suspectAt)
		if moved := wall.Sub(g.suspect) - steady; moved.Abs() > maxStep {
			g.suspect = time.Time{} // it stepped again
		} else if steady >= settle {
			g.wall, g.at, g.suspect = wall, at, time.Time{}
			return 0
		}
	}
	if g.suspect.IsZero() {
		g.suspect, g.suspectAt = wall, at
	}
	return step
}
