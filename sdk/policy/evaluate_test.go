package policy

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A busy machine must not deny what an idle one allows.
func TestADeadlineIsForWorkNotForWaiting(t *testing.T) {
	ask := func(d *deadline, times int) (over bool) {
		for range times {
			over = d.Cancelled()
		}
		return over
	}
	ago := func(spent time.Duration) *deadline {
		return &deadline{began: time.Now().Add(-spent), after: 100 * time.Second, hard: 400 * time.Second}
	}
	for _, tt := range []struct {
		name  string
		spent time.Duration
		steps int
		want  bool
	}{
		{"much work in time", 0, 4096, false},
		{"much work, too late", 150 * time.Second, 4096, true},
		{"little work, late", 150 * time.Second, 64, false},
		{"little work, far too late", 500 * time.Second, 64, true},
	} {
		if got := ask(ago(tt.spent), tt.steps); got != tt.want {
			t.Errorf("%s: over is %v", tt.name, got)
		}
	}
}

func TestWaitingIsNotCharged(t *testing.T) {
	const full = 25 * time.Millisecond
	for _, tt := range []struct {
		name  string
		spent time.Duration
		steps uint32
		over  bool
		want  time.Duration
	}{
		{"a usual decision", 10 * time.Microsecond, 60, false, 0},
		{"a usual decision on a busy machine", 90 * time.Millisecond, 60, false, 0},
		{"one that was kept waiting beyond all patience", 200 * time.Millisecond, 60, true, 3 * time.Millisecond},
		{"a slow policy", 5 * time.Millisecond, 5000, false, 5 * time.Millisecond},
		{"a policy that loops", full, 100000, true, full},
	} {
		if got := cost(tt.spent, full, tt.steps, tt.over); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestTheShareOfSlowEvaluationsIsPaidByTime(t *testing.T) {
	s := share{part: 0.1}
	const full = 25 * time.Millisecond
	id := spiffeid.RequireFromString("spiffe://a.example/x")
	if got := s.within(id, time.Hour, full); got != full {
		t.Errorf("at first %s", got)
	}
	for range 9 { // 225 ms of work: beyond the burst
		s.charge(id, time.Hour, full)
	}
	if got := s.within(id, time.Hour, full); got != full/32 {
		t.Errorf("beyond the burst %s", got)
	}
	for range 9 {
		s.charge(id, time.Hour, full)
	}
	if got := s.within(id, time.Hour, full); got != 0 {
		t.Errorf("beyond twice the burst %s", got)
	}
	if got := s.within(id, time.Hour+4500*time.Millisecond, full); got != full {
		t.Errorf("after it is paid %s", got)
	}
}

// One caller whose requests are slow uses up what is his, and many what is
// everybody's.
func TestOneCallersSlowRequestsDenyNobodyElses(t *testing.T) {
	s := share{part: 0.1}
	const full = 25 * time.Millisecond
	caller := func(n int) spiffeid.ID { return spiffeid.RequireFromString(fmt.Sprintf("spiffe://a.example/%d", n)) }
	ask := func(n int, now time.Duration) time.Duration {
		within := s.within(caller(n), now, full)
		if within > 0 {
			s.charge(caller(n), now, within)
		}
		return within
	}
	for range 10_000 {
		ask(0, time.Hour)
	}
	if own, others := ask(0, time.Hour), s.within(caller(1), time.Hour, full); own != 0 || others != full/32 {
		t.Errorf("who is slow is given %s, others %s", own, others)
	}
	var used time.Duration
	for n := range 10_000 {
		used += ask(1+n, time.Hour)
	}
	if last := s.within(caller(20_000), time.Hour, full); last != 0 || used > 3*burst || len(s.by.until) > maxDebtors {
		t.Errorf("many others used %s, and the next is given %s; %d are remembered", used, last, len(s.by.until))
	}
	if got := ask(0, 2*time.Hour); got != full {
		t.Errorf("after all is paid: %s", got)
	}
	if len(s.by.until) != 1 {
		t.Errorf("%d are remembered who owe nothing", len(s.by.until))
	}
}

// The policy that mends one that loops comes while requests loop.
func TestProbesAreAskedWhateverRequestsHaveUsedUp(t *testing.T) {
	in := Input{Identity: spiffeid.RequireFromString("spiffe://a.example/x"), Operation: "predict", Request: Request{Method: "GET", Path: "/"}}
	e := NewEngine(Config{Logger: slog.New(slog.DiscardHandler), Deadline: time.Second, Probes: []Probe{{Name: "predict", Input: in, Allowed: true}}})
	e.slow.charge(in.Identity, time.Since(e.began), time.Hour)
	p := Policy{Name: "p", Modules: map[string]string{"p.rego": "package legation\nallow := true"}}
	if err := e.Set(t.Context(), "test", p); err != nil {
		t.Error(err)
	}
	if d := e.Decide(t.Context(), &in); d.Cause != CauseThrottled {
		t.Errorf("a request is %s, want throttled", d.Cause)
	}
}
