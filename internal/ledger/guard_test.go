package ledger

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store/memory"
)

func wantIssuing(t *testing.T, g *Guard, when string) {
	t.Helper()
	if _, err := g.Check(); err != nil {
		t.Errorf("%s: %v, want issuing", when, err)
	}
}

func wantRefusal(t *testing.T, g *Guard, when, reason string) {
	t.Helper()
	_, err := g.Check()
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), reason) {
		t.Errorf("%s: %v, want unavailable because %q", when, err, reason)
	}
}

func TestTheClockThatJumpsAnHourEitherWay(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 5*time.Minute + time.Second, -5*time.Minute - time.Second} {
		synctest.Test(t, func(t *testing.T) {
			c := &clock.Skewed{}
			g := NewGuard(c)
			wantIssuing(t, g, "before")
			time.Sleep(3 * time.Hour) // not a step: as much elapsed
			wantIssuing(t, g, "three quiet hours later")
			right := c.Now()
			c.Jump(jump)
			wantRefusal(t, g, "after the jump", "stepped")
			if got := g.Now(); !got.Equal(right) {
				t.Errorf("lists are dated %s, want %s", got, right)
			}
			time.Sleep(9 * time.Minute)
			wantRefusal(t, g, "nine minutes later", "stepped")
			c.Jump(-jump)
			wantIssuing(t, g, "once the clock is right again")
		})
	}
}

func TestASteppedClockIsBelievedOnceItRanSteadily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock.Skewed{}
		g := NewGuard(c)
		c.Jump(8 * time.Hour) // a virtual machine was resumed
		wantRefusal(t, g, "after the step", "stepped by 8h")
		time.Sleep(6 * time.Minute)
		c.Jump(time.Hour)
		wantRefusal(t, g, "after a second step", "stepped by 9h")
		time.Sleep(9 * time.Minute)
		wantRefusal(t, g, "the wait begins anew with each step", "stepped")
		time.Sleep(time.Minute)
		wantIssuing(t, g, "after ten steady minutes")
	})
}

func TestSmallCorrectionsAreNoSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clock.Skewed{}
		g := NewGuard(c)
		for range 100 {
			c.Jump(30 * time.Second)
			wantIssuing(t, g, "a correction of 30 s")
			time.Sleep(time.Minute)
		}
	})
}

func TestNothingIsIssuedBeforeTheNewestRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		record(t, openJournal(t, s, clock.System), newRecord("spiffe://example.org/w", time.Hour))

		// The process restarts with a clock that is an hour behind.
		c := &clock.Skewed{}
		c.Jump(-time.Hour)
		j := openJournal(t, s, c)
		wantRefusal(t, j.Guard(), "an hour before the newest record", "before the newest record")
		time.Sleep(30 * time.Minute)
		wantRefusal(t, j.Guard(), "half an hour later", "before the newest record")
		time.Sleep(30 * time.Minute)
		wantIssuing(t, j.Guard(), "when the clock has passed it")

		// Or the clock is set right at once.
		c = &clock.Skewed{}
		c.Jump(-2 * time.Hour)
		j = openJournal(t, s, c)
		wantRefusal(t, j.Guard(), "before the newest record", "before the newest record")
		c.Jump(2 * time.Hour)
		time.Sleep(settle)
		wantRefusal(t, j.Guard(), "set right, but by a step", "stepped")
		time.Sleep(settle)
		wantIssuing(t, j.Guard(), "set right and steady")
	})
}

func TestReplicasClocksMayDiffer(t *testing.T) {
	s := memory.New()
	record(t, openJournal(t, s, clock.System), newRecord("spiffe://example.org/w", time.Hour))
	c := &clock.Skewed{}
	c.Jump(-20 * time.Second)
	wantIssuing(t, openJournal(t, s, c).Guard(), "20 s behind another replica")
}

func TestAnOperatorMaySayThatTheClockIsRight(t *testing.T) {
	s := memory.New()
	future := &clock.Skewed{}
	future.Jump(1000 * time.Hour)
	r := newRecord("spiffe://example.org/w", time.Hour)
	r.IssuedAt = future.Now()
	record(t, openJournal(t, s, future), r)
	wantRefusal(t, openJournal(t, s, clock.System).Guard(), "after a record from the future", "before the newest record")
	j, err := Open(t.Context(), Params{Store: s, TrustDomain: td, AcceptClock: true})
	if err != nil {
		t.Fatal(err)
	}
	wantIssuing(t, j.Guard(), "with AcceptClock")
}
