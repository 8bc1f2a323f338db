package distribute

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// What a subscriber may have unless its SubscriberParams say otherwise.
const (
	DefaultMaxNames = 16384
	DefaultMaxBytes = 1 << 20
	DefaultWindow   = 16
	oneWindow       = 256
	maxTypes        = 64
)

// SubscriberParams say who attaches and what it may see.
type SubscriberParams struct {
	// ID names the subscriber in the ledger. Two may share one, as when a
	// stream is replaced by the next.
	ID string
	// Scopes it sees, the first wins.
	Scopes []Scope
	// OnePerResponse puts one resource into each response, so that a refusal
	// has one culprit.
	OnePerResponse bool
	// Priority orders types: the lowest is handed out first. Nil: in the
	// order of their first requests.
	Priority func(typ string) int
	// Authorise, if set, hides what it returns false for, also inside the
	// scopes. It runs under the engine's lock: no I/O, no call back.
	Authorise func(typ, name string) bool
	// MaxNames bounds the names subscribed to, over all types; 0 is
	// DefaultMaxNames.
	MaxNames int
	// MaxBytes is when a response is full and the next one begins; 0 is
	// DefaultMaxBytes, negative is never.
	MaxBytes int
	// Window is how many responses of a type may be unanswered before the
	// next one waits, and coalesces; 0 is DefaultWindow, or 256 with
	// OnePerResponse.
	Window int
}

// Subscriber is one attached stream.
type Subscriber struct {
	engine    *Engine
	id        string
	one       bool
	priority  func(string) int
	authorise func(typ, name string) bool
	maxNames  int
	maxBytes  int
	window    int
	since     time.Time

	wake chan struct{} // one token: something may be dirty
	done chan struct{} // closed by Close

	report sync.Mutex // held from a transition until OnStatus was told of it

	// The rest is written under Engine.mu.Lock, or RLock with mu.
	mu      sync.Mutex
	scopes  []*scope
	watches map[string]*watch
	order   []*watch // by rank, then by first request
	names   int
	nonce   uint64
	touched bool // only under Engine.mu.Lock
	closed  bool
	firsts  int // watches whose first answer is not complete
	synced  chan struct{}
	isSync  bool
}

// Attach adds a subscriber. It must be closed.
func (e *Engine) Attach(p SubscriberParams) *Subscriber {
	s := &Subscriber{
		engine: e, id: p.ID, one: p.OnePerResponse, priority: p.Priority, authorise: p.Authorise,
		maxNames: p.MaxNames, maxBytes: p.MaxBytes, window: p.Window, since: e.clock.Now(),
		wake: make(chan struct{}, 1), done: make(chan struct{}), synced: make(chan struct{}),
		watches: make(map[string]*watch),
	}
	if s.maxNames == 0 {
		s.maxNames = DefaultMaxNames
	}
	if s.maxBytes == 0 {
		s.maxBytes = DefaultMaxBytes
	}
	if s.window == 0 {
		s.window = DefaultWindow
		if s.one {
			s.window = oneWindow
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.enterLocked(s, p.Scopes)
	e.subscribers[s] = struct{}{}
	e.metrics.subscribers.Inc()
	return s
}

func (e *Engine) enterLocked(s *Subscriber, scopes []Scope) {
	s.scopes = make([]*scope, 0, len(scopes))
	for _, name := range scopes {
		sc := e.scopeLocked(name)
		if !slices.Contains(s.scopes, sc) {
			sc.refs++
			s.scopes = append(s.scopes, sc)
		}
	}
}

func (e *Engine) exitLocked(s *Subscriber) {
	for _, w := range s.order {
		e.leaveLocked(w)
	}
	for _, sc := range s.scopes {
		sc.refs--
		e.tidyScopeLocked(sc)
	}
	s.scopes = nil
}

// SetScopes changes what the subscriber may see. What it no longer sees is
// told to be removed.
func (s *Subscriber) SetScopes(scopes []Scope) {
	e := s.engine
	e.mu.Lock()
	if s.closed {
		e.mu.Unlock()
		return
	}
	e.exitLocked(s)
	e.enterLocked(s, scopes)
	for _, w := range s.order {
		e.joinLocked(w, s.scopes)
		w.whole = true
	}
	e.mu.Unlock()
	s.wakeUp()
}

func (s *Subscriber) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next waits for the next response. What changes between two calls is
// coalesced; nothing waits for more to come. It returns ctx's error, or
// fault.Unavailable after Close. One goroutine at a time.
func (s *Subscriber) Next(ctx context.Context) (*Response, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := s.Poll()
		if r != nil || err != nil {
			return r, err
		}
		select {
		case <-s.wake:
		case <-s.done:
		case <-ctx.Done():
		}
	}
}

// Poll is Next without waiting: nil when there is nothing to hand out now.
func (s *Subscriber) Poll() (*Response, error) {
	s.report.Lock()
	defer s.report.Unlock()
	e := s.engine
	now := e.clock.Now()
	var lines []Status
	var r *Response
	e.mu.RLock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		e.mu.RUnlock()
		return nil, errClosed(s.id)
	}
	for _, w := range s.order {
		if r = w.next(now); r == nil {
			continue
		}
		if e.onStatus != nil {
			lines = make([]Status, 0, len(r.Resources)+len(r.Removed))
			for _, x := range r.Resources {
				lines = append(lines, w.status(x.Name))
			}
			for _, name := range r.Removed {
				lines = append(lines, w.status(name))
			}
		}
		e.metrics.sent(w, len(r.Resources))
		break
	}
	s.mu.Unlock()
	e.mu.RUnlock()
	e.tell(lines)
	return r, nil
}

func (e *Engine) tell(lines []Status) {
	if e.onStatus != nil && len(lines) > 0 {
		e.onStatus(lines)
	}
}

func (s *Subscriber) firstDone() {
	s.firsts--
	if s.firsts == 0 && !s.isSync {
		s.isSync = true
		close(s.synced)
	}
}

// Synced returns a channel that is closed when Next has handed out all that
// was current when the types were first requested. Make those requests
// before the first call of Next; a first request without names is always
// answered, so after the last such answer the channel is closed.
func (s *Subscriber) Synced() <-chan struct{} { return s.synced }

// Close detaches the subscriber, takes its lines out of the ledger and ends
// Next. It may be called twice.
func (s *Subscriber) Close() {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	e.exitLocked(s)
	s.order, s.watches = nil, nil
	delete(e.subscribers, s)
	e.metrics.subscribers.Dec()
	close(s.done)
}

func errClosed(id string) error {
	return fault.New(fault.Unavailable, "subscriber %s is closed", id)
}

// SubscriberInfo describes an attached subscriber.
type SubscriberInfo struct {
	ID     string
	Scopes []Scope
	Types  []string
	Since  time.Time // attached
	Held   int       // lines in the ledger
	Behind int       // of those, not acknowledged
	Synced bool
}

// Subscribers lists who is attached, sorted by ID.
func (e *Engine) Subscribers() []SubscriberInfo {
	e.mu.RLock()
	out := make([]SubscriberInfo, 0, len(e.subscribers))
	for s := range e.subscribers {
		s.mu.Lock()
		info := SubscriberInfo{ID: s.id, Since: s.since, Synced: s.isSync}
		for _, sc := range s.scopes {
			info.Scopes = append(info.Scopes, sc.name)
		}
		for _, w := range s.order {
			info.Types = append(info.Types, w.typ)
			info.Held += len(w.held)
			for _, h := range w.held {
				if h.in.state != acked {
					info.Behind++
				}
			}
		}
		s.mu.Unlock()
		out = append(out, info)
	}
	e.mu.RUnlock()
	slices.SortFunc(out, func(a, b SubscriberInfo) int { return strings.Compare(a.ID, b.ID) })
	return out
}
