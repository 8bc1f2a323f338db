package distribute

import (
	"slices"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

const wildcard = "*"

// Request takes what the subscriber asks or answers. It returns
// fault.Limited when the subscriber would watch more names or types than its
// limit, and then changes nothing.
func (s *Subscriber) Request(r Request) error {
	s.report.Lock()
	defer s.report.Unlock()
	e := s.engine
	now := e.clock.Now()

	var lines []Status
	e.mu.RLock()
	s.mu.Lock()
	w := s.watches[r.Type]
	if w != nil && r.Nonce != "" {
		lines = w.answered(r, now)
	}
	closed := s.closed
	s.mu.Unlock()
	e.mu.RUnlock()
	e.tell(lines)
	if closed {
		return errClosed(s.id)
	}
	if w != nil && len(r.Subscribe) == 0 && len(r.Unsubscribe) == 0 {
		if r.Nonce != "" {
			s.wakeUp() // the window may have opened
		}
		return nil
	}

	e.mu.Lock()
	err := s.subscribeLocked(r, now)
	lines = nil
	if err == nil && w == nil && e.onStatus != nil {
		lines = s.claimedLocked(r)
	}
	e.mu.Unlock()
	e.tell(lines)
	s.wakeUp()
	return err
}

// claimedLocked are the lines of what a first request says is held already.
func (s *Subscriber) claimedLocked(r Request) []Status {
	w := s.watches[r.Type]
	var lines []Status
	for name := range r.Initial {
		if _, ok := w.held[name]; ok {
			lines = append(lines, w.status(name))
		}
	}
	return lines
}

// Resend hands out again those of the names that the subscriber watches by
// name, as if it had subscribed to them again: for doors whose protocol wants
// a resource repeated when another changes.
func (s *Subscriber) Resend(typ string, names ...string) {
	e := s.engine
	e.mu.RLock()
	s.mu.Lock()
	if w := s.watches[typ]; w != nil {
		for _, name := range names {
			if w.has(name) {
				w.mark(name, again)
			}
		}
	}
	s.mu.Unlock()
	e.mu.RUnlock()
	s.wakeUp()
}

func (w *watch) answered(r Request, now time.Time) []Status {
	names := w.settle(r.Nonce, r.Error, now)
	var lines []Status
	if w.sub.engine.onStatus != nil {
		for _, name := range names {
			if _, ok := w.held[name]; ok {
				lines = append(lines, w.status(name))
			}
		}
	}
	w.forget(names)
	return lines
}

func (s *Subscriber) subscribeLocked(r Request, now time.Time) error {
	if s.closed {
		return errClosed(s.id)
	}
	w := s.watches[r.Type]
	fresh := 0
	for _, name := range r.Subscribe {
		if w == nil || name != wildcard && !w.has(name) {
			fresh++
		}
	}
	if s.names+fresh > s.maxNames || w == nil && len(r.Initial) > s.maxNames {
		return fault.New(fault.Limited, "subscriber %s: %d more names of %s would exceed its limit of %d subscribed names; subscribe to the wildcard, or raise the limit",
			s.id, max(fresh, len(r.Initial)), r.Type, s.maxNames)
	}
	if w == nil {
		if len(s.watches) >= maxTypes {
			return fault.New(fault.Limited, "subscriber %s: %s would be its type number %d, the limit is %d", s.id, r.Type, maxTypes+1, maxTypes)
		}
		s.openLocked(r, now)
		return nil
	}
	w.changeLocked(r.Subscribe, r.Unsubscribe, again)
	return nil
}

func (w *watch) has(name string) bool { _, ok := w.named[name]; return ok }

// openLocked takes the first request of a type. Without names it is a
// wildcard (xDS protocol, "How the client specifies what resources to
// return"). What Initial says the subscriber has counts as acknowledged.
func (s *Subscriber) openLocked(r Request, now time.Time) {
	w := &watch{
		sub: s, typ: r.Type,
		wildcard: len(r.Subscribe) == 0, legacy: len(r.Subscribe) == 0,
		named: make(map[string]struct{}, len(r.Subscribe)),
		held:  make(map[string]held, len(r.Initial)),
		first: true,
	}
	if s.priority != nil {
		w.rank = s.priority(r.Type)
	}
	s.watches[r.Type] = w
	i := slices.IndexFunc(s.order, func(o *watch) bool { return o.rank > w.rank })
	if i < 0 {
		i = len(s.order)
	}
	s.order = slices.Insert(s.order, i, w)
	s.firsts++

	s.engine.joinLocked(w, s.scopes)
	claim := &delivery{state: acked, since: now}
	for name, version := range r.Initial {
		v := w.visible(name)
		if v == nil || v.Version != version {
			v = &Resource{Type: r.Type, Name: name, Version: version}
		}
		w.held[name] = held{sent: v, in: claim}
	}
	w.whole, w.answer = w.wildcard, w.wildcard
	if len(r.Subscribe) > 0 {
		w.changeLocked(r.Subscribe, r.Unsubscribe, initial) // Initial says what need not be sent
	}
	if !w.wildcard {
		for name := range w.held {
			if !w.has(name) {
				delete(w.held, name)
			}
		}
	}
}

// changeLocked changes what is subscribed to, by the rules of
// go-control-plane's stream.Subscription, subscriptions before the opposite.
// In addition a name that is subscribed to again is sent again: the
// subscriber may have dropped it and changed its mind before it said so
// (DeltaDiscoveryRequest.resource_names_subscribe). Names subscribed to are
// marked with m.
func (w *watch) changeLocked(subscribe, unsubscribe []string, m mark) {
	if w.legacy {
		if len(subscribe) == 0 {
			return
		}
		w.legacy = false
	}
	for _, name := range subscribe {
		if name == wildcard {
			w.setWildcardLocked(true)
			continue
		}
		if !w.has(name) {
			w.named[name] = struct{}{}
			w.sub.names++
			for _, tb := range w.tables {
				tb.addName(name, w)
			}
		}
		w.mark(name, m)
	}
	for _, name := range unsubscribe {
		if name == wildcard {
			w.setWildcardLocked(false)
			continue
		}
		w.unsubscribeLocked(name)
	}
}

func (w *watch) unsubscribeLocked(name string) {
	named := w.has(name)
	if named {
		delete(w.named, name)
		w.sub.names--
		for _, tb := range w.tables {
			tb.dropName(name, w)
		}
	}
	switch {
	case w.wildcard && (named || w.visible(name) != nil):
		// Still covered: the subscriber must be told whether it exists (xDS
		// protocol, "Unsubscribing from resources").
		w.mark(name, again)
	default:
		w.unmark(name)
		delete(w.held, name)
	}
}

func (w *watch) setWildcardLocked(on bool) {
	if w.wildcard == on {
		return
	}
	w.wildcard, w.answer = on, on
	if on {
		w.whole = true
		for _, tb := range w.tables {
			tb.addWild(w)
		}
		return
	}
	for _, tb := range w.tables {
		tb.dropWild(w)
	}
	for name := range w.held {
		if !w.has(name) {
			delete(w.held, name)
		}
	}
}
