package policy

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// deadline ends an evaluation from within: the evaluator asks it before every
// expression and inside long built-in functions, so that no timer and no
// goroutine is needed. It is used by one goroutine.
type deadline struct {
	began time.Time
	after time.Duration // for one that works
	hard  time.Duration // for any
	asked uint32
	over  bool
}

const (
	// askClock is how many questions are answered without looking at the clock.
	askClock = 8
	// manySteps tells a policy that works from one that waits for a processor:
	// a usual decision takes some dozens.
	manySteps = 512
	patience  = 12 // times the deadline, for one that has taken fewer
	// costlyStep is what a step is held to have cost at most, where the clock
	// cannot tell work from waiting.
	costlyStep = 50 * time.Microsecond
)

// Cancel implements topdown.Cancel; nobody calls it.
func (d *deadline) Cancel() {}

// Cancelled implements topdown.Cancel.
func (d *deadline) Cancelled() bool {
	if d.over {
		return true
	}
	if d.asked++; d.asked%askClock == 0 {
		spent := time.Since(d.began)
		d.over = spent > d.after && d.asked >= manySteps || spent > d.hard
	}
	return d.over
}

// baseDocument answers for "data" from memory: what an evaluation would read
// from the store, convert and cache, anew each time, never changes here.
type baseDocument struct{ data ast.Value }

// Get implements topdown.BaseCache; nil sends the evaluator to the store,
// which does not have it either.
func (b baseDocument) Get(ref ast.Ref) ast.Value {
	v, err := b.data.Find(ref[1:])
	if err != nil {
		return nil
	}
	return v
}

// Put implements topdown.BaseCache.
func (baseDocument) Put(ast.Ref, ast.Value) {}

var deadlines = sync.Pool{New: func() any { return new(deadline) }}

// evaluate asks one program. It never panics: what OPA panics with is a denial.
func (p *Program) evaluate(ctx context.Context, input *ast.Term, now, began time.Time, within, hard time.Duration) (cause Cause, detail string, steps uint32) {
	stop := deadlines.Get().(*deadline)
	*stop = deadline{began: began, after: within, hard: hard}
	defer func() {
		if r := recover(); r != nil {
			cause, detail = CauseError, fmt.Sprintf("the evaluator panicked: %v", r)
			return // stop may still be referenced: not pooled
		}
		steps = stop.asked
		deadlines.Put(stop)
	}()
	var value ast.Value
	answers := 0
	err := topdown.NewQuery(p.body).WithCompiler(p.compiler).WithStore(p.store).WithTransaction(p.txn).
		WithInput(input).WithTime(now).WithCancel(stop).WithMetrics(metrics.NoOp()).WithBaseCache(p.data).
		Iter(ctx, func(r topdown.QueryResult) error {
			answers++
			if t := r[p.answer]; t != nil {
				value = t.Value
			}
			return nil
		})
	switch {
	case stop.over:
		return CauseDeadline, fmt.Sprintf("the evaluation took %s in %d steps, at most %s is allowed", time.Since(began).Round(time.Millisecond), stop.asked, within), 0
	case err != nil:
		return CauseError, err.Error(), 0
	case answers == 0:
		return CauseUndefined, "", 0
	case answers > 1:
		return CauseError, "the query has more than one answer", 0
	}
	switch b, ok := value.(ast.Boolean); {
	case !ok:
		return CauseNotBoolean, "the answer is of type " + ast.ValueName(value), 0
	case bool(b):
		return CauseAllowed, "", 0
	}
	return CauseDenied, "", 0
}

// A share bounds how much of one core slow evaluations may use, so that a
// policy that loops cannot eat the machine: a leaky bucket in one word.
type share struct {
	until atomic.Int64 // when everything charged will have been paid for, ns on the clock of now
	part  float64      // of one core
	by    debtors
}

const burst = 200 * time.Millisecond // of evaluation

// within is how long an evaluation for a caller may take that begins at now;
// zero is not at all.
func (s *share) within(id spiffeid.ID, now, full time.Duration) time.Duration {
	debt := float64(s.until.Load()-int64(now)) * s.part
	switch {
	case debt < float64(burst):
		return full
	case debt < 2*float64(burst), debt < 4*float64(burst) && !s.by.owes(id, now):
		return full / 32
	}
	return 0
}

// cost is what is charged for an evaluation; nothing for one that was merely
// kept waiting, or a busy machine would have its honest requests denied.
func cost(spent, full time.Duration, steps uint32, over bool) time.Duration {
	switch {
	case steps >= manySteps && (over || spent > full/10):
		return spent
	case over:
		return min(spent, time.Duration(steps)*costlyStep)
	}
	return 0
}

func (s *share) charge(id spiffeid.ID, now, spent time.Duration) {
	debt := time.Duration(float64(spent) / s.part)
	s.by.add(id, now, own*debt)
	for {
		old := s.until.Load()
		if s.until.CompareAndSwap(old, max(old, int64(now))+int64(debt)) {
			return
		}
	}
}

const (
	maxDebtors = 1024
	// own is how much heavier a caller's slow evaluations weigh on itself, so
	// that a few callers cannot use up what is left to the others.
	own = 8
)

// debtors are the callers whose slow evaluations are not paid for.
type debtors struct {
	mu    sync.Mutex                    // guards what follows
	until map[spiffeid.ID]time.Duration // when they will be, on the clock of now
}

// owes says whether a caller is one of them; when they are too many to be
// known, everybody may be.
func (d *debtors) owes(id spiffeid.ID, now time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, known := d.until[id]
	return until > now || !known && len(d.until) >= maxDebtors
}

func (d *debtors) add(id spiffeid.ID, now, debt time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.until, func(_ spiffeid.ID, until time.Duration) bool { return until <= now })
	if d.until == nil {
		d.until = map[spiffeid.ID]time.Duration{}
	}
	if _, known := d.until[id]; known || len(d.until) < maxDebtors {
		d.until[id] = max(d.until[id], now) + debt
	}
}
