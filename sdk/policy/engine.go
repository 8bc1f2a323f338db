package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is how an Engine decides. The zero value is safe.
type Config struct {
	// Deadline bounds one evaluation of one policy; what takes longer is a
	// denial. Default 25 ms. An evaluation that has done little by then (fewer
	// than 512 steps) was kept waiting by a busy machine, and is given twelve
	// times that. A policy is asked within it also when it is loaded. A single
	// built-in function is not interrupted; the allow-list holds only those
	// whose cost their arguments bound.
	Deadline time.Duration
	// SlowShare bounds what evaluations that take more than a tenth of
	// Deadline, and 512 steps, may use together, as a part of one core;
	// default 0.1. After a burst of 200 ms all are given a 32nd of Deadline, and
	// after another none, save for callers who had no part in it, for whom there
	// are two more: requests are denied with CauseThrottled until the share is
	// paid.
	SlowShare float64
	// Probes are asked of every set of policies before it comes into force: a
	// set that answers one of them otherwise is refused. For what must never
	// be lost, and what must never be gained.
	Probes []Probe
	// Logger gets decisions, and loads with their errors. Nil is slog.Default().
	Logger *slog.Logger
	// LogPerSecond bounds the decisions logged; default 100, negative logs
	// none. What is left out is counted in the next record.
	LogPerSecond int
	// LogAllowedEvery logs one of so many allowed requests; 0 logs denials
	// only, 1 everything.
	LogAllowedEvery int
	// OnDecision is told of every decision, on the goroutine of the request,
	// which waits. May be nil.
	OnDecision func(context.Context, Record)
	// Registerer takes the metrics; may be nil.
	Registerer prometheus.Registerer
	// Now is what time.now_ns answers. Nil is time.Now.
	Now func() time.Time
}

// A Probe is a question whose answer is known.
type Probe struct {
	// Name says what is asked, in the error.
	Name  string
	Input Input
	// Allowed is the answer that it must have.
	Allowed bool
}

// An Engine decides by the policies that are in force. It has none at first
// and then denies everything.
type Engine struct {
	config  Config
	id      uint64
	count   atomic.Uint64
	began   time.Time
	slow    share
	metrics *engineMetrics
	log     *decisionLog
	state   atomic.Pointer[state]

	identities learnt[spiffeid.ID]

	loading sync.Mutex // one Set at a time
}

// state is what is in force; replaced whole.
type state struct {
	programs []*Program // by name
	broken   []string   // names without a program: everything is denied
	loaded   []Loaded
	changed  chan struct{} // closed when there is another

	asksRequest bool // any of programs does
}

// NewEngine returns an Engine without policies.
func NewEngine(c Config) *Engine {
	if c.Deadline <= 0 {
		c.Deadline = 25 * time.Millisecond
	}
	if c.SlowShare <= 0 {
		c.SlowShare = 0.1
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.LogPerSecond == 0 {
		c.LogPerSecond = 100
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	e := &Engine{config: c, id: newEngineID(), began: time.Now(), metrics: newEngineMetrics(c.Registerer, c.Logger), log: newDecisionLog(c)}
	e.slow.part = c.SlowShare
	e.state.Store(&state{changed: make(chan struct{})})
	return e
}

// New returns an Engine with policies in force; for programs that never change
// them. The error is of Set.
func New(ctx context.Context, c Config, policies ...Policy) (*Engine, error) {
	e := NewEngine(c)
	if err := e.Set(ctx, "program", policies...); err != nil {
		return nil, err
	}
	return e, nil
}

// Loaded are the policies in force and a channel that is closed when there are
// others. The slice must not be changed.
func (e *Engine) Loaded() ([]Loaded, <-chan struct{}) {
	s := e.state.Load()
	return s.loaded, s.changed
}

// Set puts policies into force, instead of all before. One that does not load
// leaves the one of the same name in force; where there is none, everything is
// denied until it loads, for a policy that is missing would have denied
// something. No policies at all deny everything. Source names where they come
// from, for metrics and the log. The error joins all refusals (Errors, or a
// *ProbeError); they were logged and counted already.
func (e *Engine) Set(ctx context.Context, source string, policies ...Policy) error {
	return e.set(ctx, source, func() error { return nil }, policies)
}

// set calls last when everything is ready, before it comes into force; its
// error leaves what was before in force.
func (e *Engine) set(ctx context.Context, source string, last func() error, policies []Policy) error {
	e.loading.Lock()
	defer e.loading.Unlock()
	old := e.state.Load()
	have := map[string]*Program{}
	for _, p := range old.programs {
		have[p.name] = p
	}
	next := map[string]*Program{}
	var broken []string
	var failed []error
	for _, p := range policies {
		if next[p.Name] != nil || slices.Contains(broken, p.Name) {
			failed = append(failed, e.refused(source, p, errors.New("two policies have this name")))
			continue
		}
		if prior := have[p.Name]; prior != nil && prior.digest == digest(p) {
			next[p.Name] = prior
			e.metrics.loads.WithLabelValues(source, "unchanged").Inc()
			continue
		}
		program, err := e.prepare(ctx, p)
		if err == nil {
			next[p.Name] = program
			continue
		}
		failed = append(failed, e.refused(source, p, err))
		if prior := have[p.Name]; prior != nil {
			next[p.Name] = prior
		} else {
			broken = append(broken, p.Name)
		}
	}
	s := &state{broken: broken, changed: make(chan struct{})}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		s.programs = append(s.programs, next[name])
		s.loaded = append(s.loaded, Loaded{name, next[name].version})
		s.asksRequest = s.asksRequest || next[name].asksRequest
	}
	err := e.probe(ctx, s)
	if err == nil && len(failed) == 0 {
		err = last()
	}
	if err != nil {
		e.metrics.loads.WithLabelValues(source, "refused").Inc()
		e.config.Logger.Error("policies refused, those before stay in force", "source", source, "error", err)
		return errors.Join(append(failed, err)...)
	}
	for _, p := range s.programs {
		if have[p.name] != p {
			e.metrics.loads.WithLabelValues(source, "loaded").Inc()
			e.config.Logger.Info("policy in force", "source", source, "policy", p.name, "version", p.version)
		}
	}
	for _, p := range old.programs {
		if next[p.name] == nil {
			e.config.Logger.Info("policy no longer in force", "source", source, "policy", p.name, "version", p.version)
		}
	}
	e.metrics.inForce(old, s)
	if slices.Equal(old.programs, s.programs) && slices.Equal(old.broken, s.broken) {
		return errors.Join(failed...)
	}
	e.state.Store(s)
	close(old.changed)
	return errors.Join(failed...)
}

func (e *Engine) refused(source string, p Policy, err error) error {
	e.metrics.loads.WithLabelValues(source, "refused").Inc()
	e.config.Logger.Error("policy refused, the one before stays in force", "source", source, "policy", p.Name, "version", p.Version, "error", err)
	if p.Name == "" {
		return err
	}
	return fmt.Errorf("policy %s: %w", p.Name, err)
}

// prepare compiles a policy and asks it a test question.
func (e *Engine) prepare(ctx context.Context, p Policy) (*Program, error) {
	program, err := Compile(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := program.try(ctx, e.config.Now(), e.config.Deadline); err != nil {
		return nil, err
	}
	return program, nil
}

// try asks a question that any policy can answer; the answer may be no, and
// must not be an error, a deadline or something else than a boolean.
func (p *Program) try(ctx context.Context, now time.Time, within time.Duration) error {
	in := Input{Identity: spiffeid.RequireFromString("spiffe://test.invalid/ns/test/sa/test"), Operation: "test",
		Resource: Resource{Type: "test", Name: "test"}, Request: Request{Method: "GET", Path: "/"}}
	// The first evaluation also fills OPA's own caches, on a machine that may
	// be busy: three tries.
	var cause Cause
	var detail string
	for range 3 {
		cause, detail, _ = p.evaluate(ctx, in.term(identityTerm(in.Identity), true), now, time.Now(), within, patience*within)
		if cause != CauseDeadline {
			break
		}
	}
	switch cause {
	case CauseAllowed, CauseDenied, CauseUndefined:
		return nil
	}
	return mistake("the test question fails (%s): %s", cause, detail)
}

// A ProbeError says that a set of policies answers a Probe wrongly.
type ProbeError struct {
	Probe string
	Want  bool
	Got   Decision
}

// Error implements error.
func (p *ProbeError) Error() string {
	return fmt.Sprintf("probe %q: allowed is %v (%s), must be %v", p.Probe, p.Got.Allowed, p.Got.Cause, p.Want)
}

func (e *Engine) probe(ctx context.Context, s *state) error {
	if len(s.programs) == 0 {
		return nil // everything is denied, as asked
	}
	// What requests have used up is no reason to refuse a policy, least of all
	// the one that mends it.
	slow := &share{part: e.config.SlowShare}
	for _, p := range e.config.Probes {
		if d := e.decide(ctx, s, &p.Input, slow); d.Allowed != p.Allowed {
			return &ProbeError{p.Name, p.Allowed, d}
		}
	}
	return nil
}

// Decide asks all policies in force. It counts, and does not log: see Record.
func (e *Engine) Decide(ctx context.Context, in *Input) Decision {
	d := e.decide(ctx, e.state.Load(), in, &e.slow)
	e.metrics.decided(d)
	return d
}

func (e *Engine) decide(ctx context.Context, s *state, in *Input, slow *share) Decision {
	began := time.Now()
	d := Decision{ID: DecisionID{e.id, e.count.Add(1)}, Policies: s.loaded}
	if err := in.check(); err != nil {
		return d.refuse(err)
	}
	switch {
	case len(s.broken) > 0:
		d.Cause, d.Detail = CauseBroken, "does not load: "+strings.Join(s.broken, ", ")
		return d
	case len(s.programs) == 0:
		d.Cause, d.Detail = CauseNoPolicy, "no policy is in force"
		return d
	}
	input := in.term(e.identity(in.Identity), s.asksRequest)
	now := e.config.Now()
	for _, p := range s.programs {
		start := time.Since(e.began)
		within := slow.within(in.Identity, start, e.config.Deadline)
		if within < e.config.Deadline {
			e.metrics.throttled.Inc()
		}
		if within == 0 {
			d.Cause, d.Detail = CauseThrottled, "slow evaluations have used up their share"
		} else {
			var steps uint32
			d.Cause, d.Detail, steps = p.evaluate(ctx, input, now, e.began.Add(start), within, patience*e.config.Deadline)
			if c := cost(time.Since(e.began)-start, e.config.Deadline, steps, d.Cause == CauseDeadline); c > 0 {
				slow.charge(in.Identity, start, c)
			}
		}
		if d.Cause != CauseAllowed {
			d.Policy = Loaded{p.name, p.version}
			break
		}
	}
	d.Allowed = d.Cause == CauseAllowed
	d.Duration = time.Since(began)
	return d
}

func (d Decision) refuse(err error) Decision {
	d.Allowed, d.Cause, d.Detail = false, CauseMalformed, err.Error()
	if r, ok := errors.AsType[*Refusal](err); ok {
		d.Detail = r.Detail
		if slices.Contains(causes, r.Cause) && r.Cause != CauseAllowed {
			d.Cause = r.Cause
		}
	}
	return d
}

// Refuse is the Decision for a request that no policy is asked about: by the
// cause of a *Refusal, or as malformed.
func (e *Engine) Refuse(err error) Decision {
	d := Decision{ID: DecisionID{e.id, e.count.Add(1)}, Policies: e.state.Load().loaded}.refuse(err)
	e.metrics.decided(d)
	return d
}

// Record hands a decision to the log and to OnDecision.
func (e *Engine) Record(ctx context.Context, r Record) {
	e.log.add(ctx, r)
	if e.config.OnDecision != nil {
		e.config.OnDecision(ctx, r)
	}
}

func (e *Engine) identity(id spiffeid.ID) *ast.Term { return e.identities.term(id, identityTerm) }
