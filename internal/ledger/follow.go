package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

const (
	// keepExpired is how long a record stays after its certificate expired.
	keepExpired = time.Hour
	pruneEvery  = time.Minute
	// pruneChunk deletes per transaction, below etcd's limit of 128 operations.
	pruneChunk = 100
	retryAfter = 500 * time.Millisecond
)

// Run follows the journal that other replicas write and prunes what nobody
// needs, until ctx ends.
func (j *Journal) Run(ctx context.Context) error {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	defer j.setWatching(false)
	for {
		watchCtx, stop := context.WithCancel(ctx)
		read := j.readTo()
		batches := j.store.Watch(watchCtx, j.segmentPrefix(), read)
		j.setWatching(true)
		err := j.follow(ctx, batches, prune.C)
		j.setWatching(false)
		stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		j.log.Warn("the watch of the issuance journal ended; reading it again", "error", err)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retryAfter):
			}
			if err = j.reload(ctx); err == nil {
				break
			}
			j.log.Error("cannot read the issuance journal; trying again", "error", err)
		}
	}
}

func (j *Journal) follow(ctx context.Context, batches <-chan store.Batch, prune <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b, ok := <-batches:
			if !ok {
				return fault.New(fault.Unavailable, "the store closed the watch")
			}
			if err := j.apply(b); err != nil {
				return err
			}
		case <-prune:
			if err := j.Prune(ctx); err != nil && ctx.Err() == nil {
				j.log.Warn("cannot prune the issuance journal; trying again in a minute", "error", err)
			}
		}
	}
}

func (j *Journal) apply(b store.Batch) error {
	for _, e := range b.Events {
		name := strings.TrimPrefix(e.KV.Key, j.segmentPrefix())
		if e.Deleted {
			j.drop(name)
			continue
		}
		if err := j.decodeInto(name, e.KV); err != nil {
			return err
		}
	}
	j.index.advance(b.Revision)
	return nil
}

func (j *Journal) decodeInto(name string, kv store.KV) error {
	j.index.mu.RLock()
	_, known := j.index.segments[name]
	j.index.mu.RUnlock()
	if known {
		return nil
	}
	records, err := DecodeSegment(kv.Value)
	if err != nil {
		return fmt.Errorf("read segment %s: %w; restore the store from a backup: certificates it recorded could not be revoked", kv.Key, err)
	}
	j.add(Segment{Name: name, Revision: kv.Revision, Records: records})
	return nil
}

// reload reads all segments from the store.
func (j *Journal) reload(ctx context.Context) error {
	// A segment that this replica commits while the list is read is newer
	// than the list; it must not be taken for a deleted one.
	kvs, revision, err := j.store.List(ctx, j.segmentPrefix())
	if err != nil {
		return fmt.Errorf("list segments: %w", err)
	}
	have := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		name := strings.TrimPrefix(kv.Key, j.segmentPrefix())
		have[name] = true
		if err := j.decodeInto(name, kv); err != nil {
			return err
		}
	}
	for _, s := range j.segmentsUntil(revision) {
		if !have[s.Name] {
			j.drop(s.Name)
		}
	}
	j.index.advance(revision)
	return nil
}

// Sync returns when the inventory holds everything that any replica had
// recorded when Sync was called.
func (j *Journal) Sync(ctx context.Context) error {
	head, err := j.store.Get(ctx, j.key(kindHead, "newest"))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the journal's head: %w", err)
	}
	// The newest segment known implies the older ones only when they came by
	// the watch, in order.
	timeout := time.NewTimer(2 * time.Second)
	defer timeout.Stop()
	for {
		read, watching, changed := j.index.progress()
		switch {
		case read >= head.Revision:
			return nil
		case !watching:
			return j.reload(ctx)
		}
		select {
		case <-changed:
		case <-timeout.C:
			return j.reload(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Prune deletes segments whose certificates have all been expired for an
// hour and that every cursor has passed. While the clock is not believed it
// deletes nothing: a certificate that only seems expired must stay revocable.
func (j *Journal) Prune(ctx context.Context) error {
	now, err := j.guard.Check()
	if err != nil {
		return err
	}
	passed, err := j.passedByAll(ctx)
	if err != nil {
		return err
	}
	var names []string
	j.index.mu.RLock()
	for name, s := range j.index.segments {
		if s.notAfter.Add(keepExpired).Before(now) && (passed < 0 || s.Revision <= passed) {
			names = append(names, name)
		}
	}
	j.index.mu.RUnlock()
	slices.Sort(names)
	for chunk := range slices.Chunk(names, pruneChunk) {
		var txn store.Txn
		for _, name := range chunk {
			txn.Then = append(txn.Then, store.Op{Key: j.key(kindSegment, name), Delete: true})
		}
		if _, err := j.store.Commit(ctx, txn); err != nil {
			return fmt.Errorf("delete %d expired segments: %w", len(chunk), err)
		}
		for _, name := range chunk {
			j.drop(name)
		}
	}
	return nil
}

func (j *Journal) readTo() int64 {
	read, _, _ := j.index.progress()
	return read
}

func (j *Journal) setWatching(on bool) {
	j.index.mu.Lock()
	defer j.index.mu.Unlock()
	if j.index.watching != on {
		j.index.watching = on
		j.index.wakeLocked()
	}
}

func (x *index) progress() (read int64, watching bool, changed <-chan struct{}) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.read, x.watching, x.changed
}

func (x *index) advance(revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if revision > x.read {
		x.read = revision
		x.wakeLocked()
	}
}

func (x *index) wakeLocked() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// segmentsUntil lists known segments up to a revision, oldest first.
func (j *Journal) segmentsUntil(revision int64) []Segment {
	j.index.mu.RLock()
	defer j.index.mu.RUnlock()
	var out []Segment
	for _, s := range j.index.segments {
		if s.Revision <= revision {
			out = append(out, s.Segment)
		}
	}
	slices.SortFunc(out, func(a, b Segment) int { return int(a.Revision - b.Revision) })
	return out
}
