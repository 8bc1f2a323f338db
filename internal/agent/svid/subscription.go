package svid

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/fault"
)

// settle is how long an Update waits for identities that are just being
// signed, so that a caller with several gets them together.
const settle = 250 * time.Millisecond

// Subscription is one caller's view of its identities. Next is for one
// goroutine; Close may be called from any.
type Subscription struct {
	m         *Manager
	selectors []workload.Selector
	instance  Instance
	addresses func() ([]netip.Addr, error) // nil: the machine's
	woken     chan struct{}

	slots []*slot // sorted by entry name; guarded by Manager.mu
	// closed is guarded by Manager.mu.
	closed bool

	// Of the goroutine that calls Next:
	last *Update // nil before the first
	lost bool    // what last said holds no more: the caller was given an error since
}

// Subscribe begins to obtain what a caller with the sorted selectors may
// have. It must be closed.
func (m *Manager) Subscribe(selectors []workload.Selector, instance Instance) *Subscription {
	return m.SubscribeAt(selectors, instance, nil)
}

// SubscribeAt is Subscribe for an instance that has addresses of its own, in
// a network namespace that is not the agent's.
func (m *Manager) SubscribeAt(selectors []workload.Selector, instance Instance, addresses func() ([]netip.Addr, error)) *Subscription {
	s := &Subscription{m: m, selectors: selectors, instance: instance, addresses: addresses, woken: make(chan struct{}, 1)}
	wall := m.p.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs[s] = struct{}{}
	m.rematchLocked(s)
	for _, slot := range s.slots {
		if slot.usable(wall) {
			m.metrics.hits.Inc()
		} else {
			m.metrics.misses.Inc()
		}
	}
	return s
}

// rematchLocked attaches s to the slots of the entries that match it now.
func (m *Manager) rematchLocked(s *Subscription) {
	entries := m.index.Get().match(s.selectors)
	old := s.slots
	s.slots = make([]*slot, 0, len(entries))
	for _, e := range entries {
		key := slotKey{e.Name, s.instance}
		sl := m.slots[key]
		if sl == nil {
			sl = &slot{key: key, entry: e, subs: map[*Subscription]struct{}{}}
			m.slots[key] = sl
		}
		if sl.elem != nil {
			m.idle.Remove(sl.elem)
			sl.elem = nil
		}
		sl.setEntry(e)
		if _, holds := sl.subs[s]; !holds {
			sl.addresses = s.addresses
			if len(sl.supersedes) > 0 { // of before a restart: it may present the old one
				if sl.waiting == nil {
					sl.waiting = map[*Subscription]struct{}{}
				}
				sl.waiting[s] = struct{}{}
			}
			if e.IncludeOwnIp {
				signal(m.kick)
			}
		}
		sl.subs[s] = struct{}{}
		sl.usedAt = m.p.Clock.Now()
		if sl.svid == nil {
			signal(m.kick)
		}
		s.slots = append(s.slots, sl)
	}
	for _, sl := range old {
		if !slices.Contains(s.slots, sl) {
			m.leaveLocked(s, sl)
		}
	}
	if len(old) > 0 || len(s.slots) > 0 {
		s.wake()
	}
	m.evictLocked()
}

// leaveLocked detaches s from a slot, which stays warm if it holds something.
func (m *Manager) leaveLocked(s *Subscription, sl *slot) {
	delete(sl.subs, s)
	delete(sl.waiting, s)
	m.settleLocked(sl)
	if len(sl.subs) > 0 || m.slots[sl.key] != sl {
		return
	}
	sl.usedAt = m.p.Clock.Now()
	if sl.forget || sl.svid == nil && !sl.inflight {
		m.dropLocked(sl, "")
		return
	}
	sl.elem = m.idle.PushFront(sl)
}

// Close ends the subscription; a waiting Next returns. SVIDs already handed
// out stay valid.
func (s *Subscription) Close() {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	delete(m.subs, s)
	for _, sl := range s.slots {
		m.leaveLocked(s, sl)
	}
	s.slots = nil
	m.evictLocked()
	s.wake()
}

func (s *Subscription) wake() { signal(s.woken) }

// state is what compose found.
type state struct {
	update    *Update
	matched   int
	undecided bool
	closed    bool
	blocked   bool  // every matching entry is
	refused   error // of the first that was refused for good, if none is usable or pending
	waiting   error // why the first that is pending has nothing
}

func (s *Subscription) compose() state {
	m := s.m
	wall := m.p.Clock.Now()
	trust := m.trust.Get()
	m.mu.Lock()
	defer m.mu.Unlock()
	st := state{update: &Update{Trust: trust, SVIDs: make([]*SVID, 0, len(s.slots))}, matched: len(s.slots), closed: s.closed, blocked: len(s.slots) > 0}
	pending := false
	// An SVID without the roots to verify peers by is of no use to anyone.
	rootless := len(trust.Roots[trust.TrustDomain]) == 0 && !m.index.Get().view.Synced
	for _, sl := range s.slots {
		if sl.usable(wall) && !rootless {
			st.update.SVIDs = append(st.update.SVIDs, sl.svid)
			st.blocked = false
			continue
		}
		st.undecided = st.undecided || sl.undecided(wall)
		why := sl.err
		blocked := sl.entry != nil && sl.entry.Blocked
		switch {
		case blocked:
			why = fault.New(fault.Denied, "identity %s is revoked and blocked until lifted (entry %s)", sl.entry.SpiffeId, sl.key.entry)
		case rootless:
			why = fault.New(fault.Unavailable, "the trust bundle of %q has not been received yet", trust.TrustDomain)
		case why == nil:
			why = fault.New(fault.Unavailable, "the certificate of entry %s is being signed", sl.key.entry)
		default:
			why = fault.New(fault.KindOf(why), "the certificate of entry %s could not be signed: %w", sl.key.entry, why)
		}
		st.blocked = st.blocked && blocked
		switch fault.KindOf(why) {
		case fault.Denied, fault.Invalid, fault.NotFound:
			if st.refused == nil {
				st.refused = fault.New(fault.Denied, "%w", why)
			}
		default:
			pending = true
			if st.waiting == nil {
				st.waiting = why
			}
		}
		if st.update.Pending == nil {
			st.update.Pending = map[string]error{}
		}
		st.update.Pending[sl.key.entry] = why
	}
	if pending || len(st.update.SVIDs) > 0 {
		st.refused = nil
	}
	return st
}

// news reports whether an Update differs from the last one handed out.
func (s *Subscription) news(u *Update) bool {
	return s.last == nil || s.lost || u.Trust != s.last.Trust || !slices.Equal(u.SVIDs, s.last.SVIDs)
}

// Next returns the first Update as soon as at least one matching SVID is
// there (those being signed are waited for a moment), afterwards each newer
// one; an Update that was overtaken is skipped.
//
// A caller that no entry matches is held up to HoldOff, then fault.Denied says
// which entries come near; so is one whose entries were all refused. One whose
// identities are all blocked is denied at once. When nothing can be
// signed now, the first Next gives fault.Unavailable after five times
// HoldOff. After an error Next may be called again; the next Update is news
// also when it is what was there before the error. An SVID that expires
// while it cannot be renewed is left out; if it was the last, Next waits.
func (s *Subscription) Next(ctx context.Context) (u *Update, err error) {
	defer func() {
		if err == nil || ctx.Err() == nil {
			s.lost = err != nil
		}
	}()
	begun := time.Now()
	var unsettled time.Time // since when something undecided holds an Update back
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	for {
		st := s.compose()
		now := time.Now()
		wait := time.Duration(-1) // until something wakes us
		holdOff := s.m.p.HoldOff - now.Sub(begun)
		switch {
		case st.closed:
			return nil, fault.New(fault.Unavailable, "the subscription was closed")
		case len(st.update.SVIDs) > 0 && s.news(st.update):
			if !st.undecided {
				s.last = st.update
				return st.update, nil
			}
			if unsettled.IsZero() {
				unsettled = now
			}
			if wait = settle - now.Sub(unsettled); wait <= 0 {
				s.last = st.update
				return st.update, nil
			}
		case len(st.update.SVIDs) > 0:
			unsettled = time.Time{}
		case st.blocked:
			return nil, st.refused
		case st.matched == 0 && (s.last != nil || holdOff <= 0):
			return nil, s.m.noIdentity(ctx, s.selectors)
		case st.refused != nil && holdOff <= 0:
			return nil, st.refused
		case st.matched == 0 || st.refused != nil:
			wait = holdOff
		case s.last == nil: // pending
			if wait = 5*s.m.p.HoldOff - now.Sub(begun); wait <= 0 {
				return nil, st.waiting
			}
		}
		var fired <-chan time.Time
		if wait >= 0 {
			if timer == nil {
				timer = time.NewTimer(wait)
			} else {
				timer.Reset(wait)
			}
			fired = timer.C
		}
		select {
		case <-s.woken:
		case <-fired:
		case <-ctx.Done():
			if st.waiting != nil && len(st.update.SVIDs) == 0 {
				return nil, fault.New(fault.Unavailable, "%w (the caller waited no longer)", st.waiting)
			}
			return nil, ctx.Err()
		}
	}
}
