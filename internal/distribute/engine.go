package distribute

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/clock"
	"github.com/prometheus/client_golang/prometheus"
)

// Params are an Engine's inputs; the zero value works.
type Params struct {
	Clock clock.Clock // nil is the machine's
	// OnStatus is told each line of the ledger that changed, one call per
	// response or answer. It runs in the goroutine that called Next or
	// Request, outside the engine's locks and in order per subscriber; it
	// must not call Next, Request or Close of that subscriber.
	OnStatus   func([]Status)
	Registerer prometheus.Registerer
}

// Engine holds scopes of resources and pushes their changes to subscribers.
// All methods may be called from any goroutine.
type Engine struct {
	clock    clock.Clock
	onStatus func([]Status)
	metrics  *metrics

	// mu guards scopes and their tables. It also guards all subscribers'
	// state: written under Lock, or under RLock with the subscriber's mu.
	// Order: Subscriber.report, Engine.mu, Subscriber.mu.
	mu          sync.RWMutex
	scopes      map[Scope]*scope
	subscribers map[*Subscriber]struct{}
}

// New returns an empty Engine. It starts nothing.
func New(p Params) *Engine {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	return &Engine{
		clock:       p.Clock,
		onStatus:    p.OnStatus,
		metrics:     newMetrics(p.Registerer),
		scopes:      make(map[Scope]*scope),
		subscribers: make(map[*Subscriber]struct{}),
	}
}

// Apply makes the changes in one step: no subscriber sees some of them
// without the others within a type. What keeps its version is dropped; the
// rest costs what the touched subscribers cost. Where Resource is set, its
// own type and name count.
func (e *Engine) Apply(changes ...Change) {
	var t touched
	e.mu.Lock()
	for i := range changes {
		c := &changes[i]
		typ, name := c.Type, c.Name
		if c.Resource != nil {
			typ, name = c.Resource.Type, c.Resource.Name
		}
		e.setLocked(&t, c.Scope, typ, name, c.Resource)
	}
	t.resetLocked()
	e.mu.Unlock()
	t.wake()
}

// Replace makes resources the whole content of the scope, in one step. Of
// two resources with the same type and name the first counts.
func (e *Engine) Replace(name Scope, resources []*Resource) {
	type key struct{ typ, name string }
	keep := make(map[key]struct{}, len(resources))
	var t touched
	e.mu.Lock()
	for _, r := range resources {
		k := key{r.Type, r.Name}
		if _, twice := keep[k]; twice {
			continue
		}
		keep[k] = struct{}{}
		e.setLocked(&t, name, r.Type, r.Name, r)
	}
	if sc := e.scopes[name]; sc != nil {
		for _, tb := range sc.tables {
			for n := range tb.resources {
				if _, ok := keep[key{tb.typ, n}]; !ok {
					e.setLocked(&t, name, tb.typ, n, nil)
				}
			}
		}
	}
	t.resetLocked()
	e.mu.Unlock()
	t.wake()
}

// Drop empties the scope. Subscribers stay attached to its name.
func (e *Engine) Drop(name Scope) { e.Replace(name, nil) }

// Lookup returns what a subscriber of these scopes would see under the name,
// or nil.
func (e *Engine) Lookup(scopes []Scope, typ, name string) *Resource {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, n := range scopes {
		if sc := e.scopes[n]; sc != nil {
			if tb := sc.tables[typ]; tb != nil {
				if r := tb.resources[name]; r != nil {
					return r
				}
			}
		}
	}
	return nil
}

// List returns what a wildcard subscriber of these scopes would see of the
// type, sorted by name.
func (e *Engine) List(scopes []Scope, typ string) []*Resource {
	e.mu.RLock()
	defer e.mu.RUnlock()
	seen := make(map[string]struct{})
	var out []*Resource
	for _, n := range scopes {
		sc := e.scopes[n]
		if sc == nil || sc.tables[typ] == nil {
			continue
		}
		for name, r := range sc.tables[typ].resources {
			if _, ok := seen[name]; !ok {
				seen[name] = struct{}{}
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (e *Engine) setLocked(t *touched, name Scope, typ, resource string, r *Resource) {
	sc := e.scopes[name]
	if sc == nil {
		if r == nil {
			return
		}
		sc = e.scopeLocked(name)
	}
	tb := sc.tables[typ]
	if tb == nil {
		if r == nil {
			return
		}
		tb = sc.table(typ)
	}
	old := tb.resources[resource]
	switch {
	case old == nil && r == nil:
		return
	case old != nil && r != nil && old.Version == r.Version:
		return
	case r == nil:
		delete(tb.resources, resource)
	default:
		tb.resources[resource] = r
	}
	e.metrics.changes.Inc()
	if t.at.IsZero() {
		t.at = e.clock.Now()
	}
	tb.interested(resource, func(w *watch) { t.markLocked(w, resource) })
	if r == nil {
		e.tidyLocked(tb)
	}
}

// touched collects subscribers to wake once the lock is released.
type touched struct {
	subscribers []*Subscriber
	at          time.Time // of the change
}

func (t *touched) markLocked(w *watch, name string) {
	if w.changed.IsZero() && !w.first {
		w.changed = t.at
	}
	w.mark(name, 0)
	if !w.sub.touched {
		w.sub.touched = true
		t.subscribers = append(t.subscribers, w.sub)
	}
}

func (t *touched) resetLocked() {
	for _, s := range t.subscribers {
		s.touched = false
	}
}

func (t *touched) wake() {
	for _, s := range t.subscribers {
		s.wakeUp()
	}
}
