// Package catalog answers "what has been declared": resources that people
// apply, validated strictly, stored all or nothing, and given out as
// immutable, indexed snapshots with what changed between them. What follows
// from a snapshot for a proxy or an agent is package compile's; nodes, bans,
// authorities and revocations belong to others.
package catalog

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/latest"
	"github.com/legation-io/legation/internal/store"
)

// Params is what a Catalog needs.
type Params struct {
	Store       store.Store
	TrustDomain spiffeid.TrustDomain
	Clock       clock.Clock
	Log         *slog.Logger
	Registerer  prometheus.Registerer // may be nil
	Limits      Limits
}

// Catalog follows the declared resources in the store.
type Catalog struct {
	store       store.Store
	trustDomain spiffeid.TrustDomain
	clock       clock.Clock
	log         *slog.Logger
	limits      Limits
	metrics     *metrics

	snapshot  latest.Value[*Snapshot] // replaced whole by Run
	compiling chan struct{}           // holds one token: policies are compiled by one at a time
	applying  chan struct{}           // holds one token: one writer of this replica at a time

	mu      sync.Mutex // guards history
	history changeLog
}

// Open reads everything declared. The Catalog is of that revision until Run
// follows the store.
func Open(ctx context.Context, p Params) (*Catalog, error) {
	c := &Catalog{
		store: p.Store, trustDomain: p.TrustDomain, clock: p.Clock, log: p.Log,
		limits: p.Limits.withDefaults(), metrics: newMetrics(p.Registerer), applying: make(chan struct{}, 1), compiling: make(chan struct{}, 1),
	}
	if c.clock == nil {
		c.clock = clock.System
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	first, err := c.list(ctx, newSnapshot(p.TrustDomain))
	if err != nil {
		return nil, fmt.Errorf("read the declared resources: %w", err)
	}
	c.publish(first, &Delta{})
	return c, nil
}

// Snapshot returns the newest snapshot and a channel that is closed when
// there is a newer one.
func (c *Catalog) Snapshot() (*Snapshot, <-chan struct{}) { return c.snapshot.Load() }

// Changes is what differs between two snapshots of this Catalog, from before
// to. It costs what changed, unless from is more than a thousand changes
// behind. A nil from is an empty snapshot.
func (c *Catalog) Changes(from, to *Snapshot) *Delta {
	if from == to {
		return &Delta{}
	}
	if from == nil {
		return diff(newSnapshot(c.trustDomain), to)
	}
	c.mu.Lock()
	newest := c.snapshot.Get().sequence
	d, ok := c.history.between(from.sequence, to.sequence, newest)
	c.mu.Unlock()
	if ok {
		return d
	}
	return diff(from, to)
}

// publish replaces the snapshot. Only Open and Run call it.
func (c *Catalog) publish(s *Snapshot, d *Delta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sequence++
	c.history.add(s.sequence, d)
	c.snapshot.Store(s)
	c.metrics.published(s)
}

const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// Run follows the store until ctx ends, and returns ctx's error. While the
// store cannot be followed the last snapshot stays, and Run tries again.
func (c *Catalog) Run(ctx context.Context) error {
	backoff := firstBackoff
	for {
		now := c.snapshot.Get()
		if c.follow(ctx, c.store.Watch(ctx, store.Prefix+c.trustDomain.Name()+"/", now.Revision)) {
			backoff = firstBackoff
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The watch broke or its revision was compacted away: read anew.
		if err := c.relist(ctx); err != nil {
			c.log.Warn("the catalog is behind: the store cannot be read", "error", err, "retry_in", backoff)
		}
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// maxCoalesced bounds how many transactions become one snapshot when they
// arrive faster than snapshots are made.
const maxCoalesced = 256

// follow applies batches until the watch ends; it reports whether any came.
func (c *Catalog) follow(ctx context.Context, watch <-chan store.Batch) bool {
	any := false
	for {
		var batch store.Batch
		var ok bool
		select {
		case <-ctx.Done():
			return any
		case batch, ok = <-watch:
			if !ok {
				return any
			}
		}
		any = true
		batches := []store.Batch{batch}
	more:
		for len(batches) < maxCoalesced {
			select {
			case batch, ok = <-watch:
				if !ok {
					break more
				}
				batches = append(batches, batch)
			default:
				break more
			}
		}
		c.apply(batches)
	}
}

func (c *Catalog) apply(batches []store.Batch) {
	began := time.Now()
	now := c.snapshot.Get()
	var b *builder // made by the first event that is ours
	guard, revision := now.guard, now.Revision
	for _, batch := range batches {
		for _, e := range batch.Events {
			key, err := store.ParseKey(e.KV.Key)
			if err != nil {
				continue
			}
			if e.KV.Key == c.guardKey() {
				guard = e.KV.Revision
				if e.Deleted {
					guard = 0
				}
				continue
			}
			if !ours(key) {
				continue
			}
			if b == nil {
				b = newBuilder(now)
			}
			c.event(b, key, e.KV, e.Deleted)
		}
		revision = max(revision, batch.Revision)
	}
	if b == nil && guard == now.guard {
		return // others' keys: nobody needs to wake
	}
	if b == nil {
		b = newBuilder(now)
	}
	next, delta := b.finish()
	next.guard, next.Revision = guard, revision
	c.publish(next, delta)
	c.metrics.snapshotSeconds.Observe(time.Since(began).Seconds())
}

// ours reports whether a key holds a declared resource or a namespace.
func ours(key store.Key) bool {
	if key.Namespace == store.System {
		return key.Kind == namespaceKind
	}
	_, ok := kindByPlural(key.Kind)
	return ok
}

// event takes one change into the next snapshot.
func (c *Catalog) event(b *builder, key store.Key, kv store.KV, deleted bool) {
	if key.Kind == namespaceKind {
		index(b.next.namespaces, key.Name, struct{}{}, !deleted)
		return
	}
	k, _ := kindByPlural(key.Kind)
	id := objectID(k, key.Namespace, key.Name)
	if deleted {
		b.next.quarantined.delete(id)
		b.put(id, nil)
		return
	}
	o, err := parse(c.trustDomain, key, kv)
	if err != nil {
		// A54: one poisoned value stops nothing; the last good one stays.
		b.next.quarantined.set(id, &Quarantined{Kind: k.name, Namespace: key.Namespace, Name: key.Name, Revision: kv.Revision, Reason: err.Error()})
		c.log.Error("a stored resource cannot be read and is left out", "kind", k.name, "namespace", key.Namespace,
			"name", key.Name, "revision", kv.Revision, "error", err, "fix", "apply it again, or delete it")
		return
	}
	b.next.quarantined.delete(id)
	b.put(id, o)
}
