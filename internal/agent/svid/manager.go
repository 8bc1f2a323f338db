package svid

import (
	"container/list"
	"context"
	"crypto/ecdsa"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/latest"
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/sealed"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	defaultCacheSize = 100
	defaultHoldOff   = 2 * time.Second
	// recheck bounds how long a timer is trusted: wall time may jump.
	recheck = 30 * time.Second
	// ownIPsEvery is how soon a changed address of the machine is noticed.
	ownIPsEvery = time.Second
)

// Params is what a Manager needs. Views and Signer are required.
type Params struct {
	Views  upstream.Views
	Signer upstream.Signer
	Clock  clock.Clock // nil is the machine's
	// CacheSize bounds the SVIDs that are kept though nobody uses them now,
	// together with those in use; 0 is 100. What is in use is never evicted.
	CacheSize int
	// HoldOff is how long a caller without an entry is held before it is
	// denied; 0 is 2 s.
	HoldOff time.Duration
	// Sealed keeps the SVIDs over a restart; nil keeps nothing.
	Sealed *sealed.Box
	// OwnIPs are this machine's addresses for entries that include them.
	OwnIPs func() []netip.Addr
	// Superseded is told the serials that nobody presents any more because the
	// addresses changed; optional. It is called
	// under the Manager's lock: it must not block, and not call back.
	Superseded func(serials []string)
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Manager holds the identities of this machine. Its methods may be called
// before and while Run runs; nothing is signed before.
type Manager struct {
	p       Params
	log     *slog.Logger
	metrics *metrics

	index latest.Value[*index] // replaced by Run, under mu
	trust latest.Value[*Trust] // replaced by Run

	kick    chan struct{}          // something wants to be signed
	dirty   chan struct{}          // the sealed cache is behind
	spares  chan *ecdsa.PrivateKey // made in advance
	explain *rate.Limiter          // questions to the control plane

	mu      sync.Mutex // guards what follows
	slots   map[slotKey]*slot
	idle    *list.List // of *slot without subscription, last used first
	subs    map[*Subscription]struct{}
	revoked map[string]struct{} // serials
	retired map[string]retired  // what ended instances left, by entry
	// superseded: reported, and in no CRL yet. Serial to end of life.
	superseded map[string]time.Time
	down       bool // the control plane did not answer last time, and we said so

	jwts    jwtCache
	jwtRate *limit.Buckets // tokens asked for, by entry
}

// New starts nothing; Run does the work.
func New(p Params) *Manager {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.CacheSize <= 0 {
		p.CacheSize = defaultCacheSize
	}
	if p.HoldOff <= 0 {
		p.HoldOff = defaultHoldOff
	}
	if p.OwnIPs == nil {
		p.OwnIPs = func() []netip.Addr { return nil }
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		p: p, log: p.Log,
		kick:    make(chan struct{}, 1),
		dirty:   make(chan struct{}, 1),
		spares:  make(chan *ecdsa.PrivateKey, spareKeys),
		explain: rate.NewLimiter(5, 10),
		slots:   map[slotKey]*slot{},
		idle:    list.New(),
		subs:    map[*Subscription]struct{}{},
		retired: map[string]retired{},

		superseded: map[string]time.Time{},
		jwtRate:    limit.NewBuckets(limit.Rate{PerSecond: jwtsPerSecond, Burst: jwtsAtOnce}, 0),
	}
	m.metrics = newMetrics(m, p.Registerer)
	m.index.Store(newIndex(&upstream.View{}))
	m.trust.Store(&Trust{})
	return m
}

// Run signs, renews and persists until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.restore()
	var owned sync.WaitGroup
	defer owned.Wait()
	owned.Go(func() { m.makeSpares(ctx) })
	owned.Go(func() { m.persist(ctx) })

	view, changed := m.p.Views.View()
	m.apply(view)
	// One call at a time: whoever is waiting goes at once, and what arrives
	// while a call is under way is the next batch.
	signed := make(chan struct{}, 1)
	signing := false
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	for {
		batch, next := m.tick(!signing)
		if len(batch) > 0 {
			signing = true
			owned.Go(func() {
				m.sign(ctx, batch)
				signed <- struct{}{}
			})
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			view, changed = m.p.Views.View()
			m.apply(view)
		case <-signed:
			signing = false
		case <-m.kick:
		case <-timer.C:
		}
	}
}

// apply takes a new View in: what may be held, what verifies, what is revoked.
func (m *Manager) apply(view *upstream.View) {
	trust := trustOf(view, m.trust.Get())
	old := m.index.Get()
	fresh := old.with(view)
	entriesChanged := !maps.Equal(old.view.Entries, view.Entries) || old.view.Synced != view.Synced
	if entriesChanged {
		fresh = newIndex(view)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetSupersededLocked(view, m.p.Clock.Now())
	m.index.Store(fresh)
	if trust != m.trust.Get() {
		m.trust.Store(trust)
		for s := range m.subs {
			s.wake()
		}
	}
	if !sameRevocations(old.view.Revocations, view.Revocations) {
		m.revoked = map[string]struct{}{}
		for _, r := range view.Revocations {
			for _, serial := range r.Serials {
				m.revoked[serial] = struct{}{}
			}
		}
	}
	reconnected := view.Connected && !old.view.Connected
	for _, s := range m.slots {
		m.reviewLocked(s, view, reconnected)
	}
	if entriesChanged {
		for s := range m.subs {
			m.rematchLocked(s)
		}
	}
}

// reviewLocked applies a View to one slot.
func (m *Manager) reviewLocked(s *slot, view *upstream.View, reconnected bool) {
	entry := view.Entries[s.key.entry]
	if entry == nil {
		if view.Synced {
			m.dropLocked(s, "its entry is gone")
		}
		return
	}
	if s.setEntry(entry) {
		s.retryNow()
		s.wakeAll()
	}
	if reconnected {
		s.retryNow()
	}
	if s.svid == nil {
		return
	}
	_, revoked := m.revoked[s.svid.Serial]
	switch {
	case entry.Blocked:
		m.log.Warn("an identity was revoked and is blocked; its SVID is dropped", "spiffe_id", s.svid.ID, "entry", s.key.entry, "serial", s.svid.Serial)
		s.svid = nil
		s.wakeAll()
		signal(m.dirty)
	case revoked && !s.revoked:
		m.log.Warn("a certificate was revoked; a new key is obtained", "spiffe_id", s.svid.ID, "entry", s.key.entry, "serial", s.svid.Serial)
		s.revoked = true
		s.retryNow()
		s.wakeAll()
		signal(m.dirty)
	}
}

// tick wakes whoever is affected by the passing of time and returns what is
// to be signed, if the caller may sign, and for how long nothing else is due.
func (m *Manager) tick(maySign bool) (batch []*slot, next time.Duration) {
	m.readAddresses()
	wall, now := m.p.Clock.Now(), time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	next = recheck
	for _, s := range m.slots {
		if usable := s.usable(wall); usable != s.wasUsable {
			s.wasUsable = usable
			s.wakeAll()
		}
		if s.svid != nil && len(s.subs) == 0 && !s.inflight && !wall.Before(s.svid.NotAfter) {
			m.dropLocked(s, "it expired and nobody uses it")
			continue
		}
		due := s.dueIn(wall, now)
		if due <= 0 {
			if maySign {
				batch = append(batch, s)
			}
			continue // otherwise looked at again when the call returns
		}
		next = min(next, due)
		if s.svid != nil {
			if left := s.svid.NotAfter.Sub(wall); left > 0 {
				next = min(next, left)
			}
		}
		if s.entry != nil && s.entry.IncludeOwnIp && len(s.subs) > 0 {
			next = min(next, ownIPsEvery)
		}
	}
	// Who has nothing goes before who has something to renew.
	slices.SortStableFunc(batch, func(a, b *slot) int {
		return boolInt(a.usable(wall)) - boolInt(b.usable(wall))
	})
	batch = batch[:min(len(batch), maxBatch)]
	for _, s := range batch {
		s.inflight = true
	}
	return batch, next
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Match returns the entries that a caller with the selectors may have, by name.
func (m *Manager) Match(selectors []workload.Selector) []*nodev1.Entry {
	return m.index.Get().match(selectors)
}

// WaitMatch is Match that waits for an entry up to HoldOff; fault.Denied with
// the reason when none comes, fault.Unavailable when this agent does not know
// its entries yet.
func (m *Manager) WaitMatch(ctx context.Context, selectors []workload.Selector) ([]*nodev1.Entry, error) {
	timer := time.NewTimer(m.p.HoldOff)
	defer timer.Stop()
	for {
		index, changed := m.index.Load()
		if all := index.match(selectors); len(all) > 0 {
			return all, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, m.noIdentity(ctx, selectors)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Want says which costly selectors the entries ask for.
func (m *Manager) Want() workload.Want { return m.index.Get().want }

// Trust returns what verifies peers and a channel closed when it changes.
func (m *Manager) Trust() (*Trust, <-chan struct{}) { return m.trust.Load() }

// Forget drops what is held for an instance that will not come back, such
// as a session that ended. SVIDs in use stay until their subscriptions close.
func (m *Manager) Forget(instance Instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		if s.key.instance == instance {
			if len(s.subs) == 0 {
				m.dropLocked(s, "")
			} else {
				s.forget = true
			}
		}
	}
	m.jwts.forget(instance)
}

// dropLocked takes a slot away from everyone.
func (m *Manager) dropLocked(s *slot, why string) {
	if m.slots[s.key] != s {
		return
	}
	delete(m.slots, s.key)
	s.waiting = nil
	m.settleLocked(s)
	if s.elem != nil {
		m.idle.Remove(s.elem)
		s.elem = nil
	}
	if s.svid != nil && why != "" {
		m.log.Info("an SVID is dropped: "+why, "spiffe_id", s.svid.ID, "entry", s.key.entry, "instance", string(s.key.instance))
	}
	s.entry = nil
	s.wakeAll()
	if s.svid != nil {
		signal(m.dirty)
	}
}

// evictLocked keeps the number of slots within bounds.
func (m *Manager) evictLocked() {
	for len(m.slots) > m.p.CacheSize && m.idle.Len() > 0 {
		m.metrics.evicted.Inc()
		m.dropLocked(m.idle.Back().Value.(*slot), "")
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// noIdentity is the answer to a caller whom no entry matches.
func (m *Manager) noIdentity(ctx context.Context, selectors []workload.Selector) error {
	index := m.index.Get()
	if !index.view.Synced {
		why := ""
		if index.view.LastError != "" {
			why = ": " + index.view.LastError
		}
		return fault.New(fault.Unavailable, "this agent has not received its registration entries from the control plane yet%s; try again", why)
	}
	return fault.New(fault.Denied, "no identity for this process: no registration entry of this node matches it; %s", m.near(ctx, index, selectors))
}
