package policy

import (
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
	if got := s.within(time.Hour, full); got != full {
		t.Errorf("at first %s", got)
	}
	for range 9 { // 225 ms of work: beyond the burst
		s.charge(time.Hour, full)
	}
	if got := s.within(time.Hour, full); got != full/32 {
		t.Errorf("beyond the burst %s", got)
	}
	for range 9 {
		s.charge(time.Hour, full)
	}
	if got := s.within(time.Hour, full); got != 0 {
		t.Errorf("beyond twice the burst %s", got)
	}
	if got := s.within(time.Hour+4500*time.Millisecond, full); got != full {
		t.Errorf("after it is paid %s", got)
	}
}

// The policy that mends one that loops comes while requests loop.
func TestProbesAreAskedWhateverRequestsHaveUsedUp(t *testing.T) {
	in := Input{Identity: spiffeid.RequireFromString("spiffe://a.example/x"), Operation: "predict", Request: Request{Method: "GET", Path: "/"}}
	e := NewEngine(Config{Logger: slog.New(slog.DiscardHandler), Deadline: time.Second, Probes: []Probe{{Name: "predict", Input: in, Allowed: true}}})
	e.slow.charge(time.Since(e.began), time.Hour)
	p := Policy{Name: "p", Modules: map[string]string{"p.rego": "package legation\nallow := true"}}
	if err := e.Set(t.Context(), "test", p); err != nil {
		t.Error(err)
	}
	if d := e.Decide(t.Context(), &in); d.Cause != CauseThrottled {
		t.Errorf("a request is %s, want throttled", d.Cause)
	}
}
