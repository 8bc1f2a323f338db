package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/legation-io/legation/internal/store"
)

// Run follows the store until ctx ends, so that a change made by any replica
// is seen here at once.
func (r *Registry) Run(ctx context.Context) error {
	for {
		revision, err := r.reload(ctx)
		if err == nil {
			r.follow(ctx, revision)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.p.Log.Error("cannot read the nodes from the store; trying again", "error", err)
		}
		// A closed watch (compaction, store restart) lists again, not in a spin.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *Registry) reload(ctx context.Context) (int64, error) {
	kvs, revision, err := r.p.Store.List(ctx, r.prefix())
	if err != nil {
		return 0, fmt.Errorf("list nodes: %w", err)
	}
	present := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		rec, err := decode(kv)
		if err != nil {
			r.p.Log.Error("a node record is not readable; the node is refused until it is", "error", err)
			continue
		}
		present[rec.Name] = true
		r.note(rec)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, w := range r.seen {
		if w.exists && !present[name] && w.record.revision <= revision {
			r.setLocked(name, w, Record{}, false)
		}
	}
	r.synced = true
	return revision, nil
}

func (r *Registry) follow(ctx context.Context, revision int64) {
	prefix := r.prefix()
	for batch := range r.p.Store.Watch(ctx, prefix, revision) {
		for _, e := range batch.Events {
			if !e.Deleted {
				rec, err := decode(e.KV)
				if err == nil {
					r.note(rec)
					continue
				}
				r.p.Log.Error("a node record is not readable; the node is refused until it is", "error", err)
			}
			key, err := store.ParseKey(e.KV.Key)
			if err != nil {
				continue
			}
			r.mu.Lock()
			if w, ok := r.seen[key.Name]; ok && w.record.revision < e.KV.Revision {
				r.setLocked(key.Name, w, Record{}, false)
			}
			r.mu.Unlock()
		}
	}
}

// note keeps the newest version of a record in memory.
func (r *Registry) note(rec Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.seen[rec.Name]
	if !ok {
		w = &watched{}
		r.seen[rec.Name] = w
	}
	if w.exists && w.record.revision >= rec.revision {
		return
	}
	r.setLocked(rec.Name, w, rec, true)
}

func (r *Registry) setLocked(name string, w *watched, rec Record, exists bool) {
	w.record, w.exists = rec, exists
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
	if !exists {
		delete(r.seen, name)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Lookup is the record as memory has it, whether there is one, and a channel
// closed when that changes. Memory may lag behind the store; Get does not.
// Names come from verified certificates, so waiting on one that has no record
// costs no memory for strangers.
func (r *Registry) Lookup(name string) (Record, bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.seen[name]
	if !ok {
		return Record{}, false, r.changed
	}
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	return w.record, w.exists, w.changed
}

// State is every record in memory by name, whether Run has read the store
// once, and a channel closed at the next change of any.
func (r *Registry) State() (records map[string]Record, synced bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	records = make(map[string]Record, len(r.seen))
	for name, w := range r.seen {
		records[name] = w.record
	}
	return records, r.synced, r.changed
}
