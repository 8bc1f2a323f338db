// Package memory is a store in RAM with etcd's semantics: revisions,
// conditional transactions, whole-transaction watches, history that is
// compacted away. It carries tests and the simulation and keeps nothing.
package memory

import (
	"bytes"
	"context"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// historyLimit bounds the transactions kept for watches that begin in the past.
const historyLimit = 10_000

// Store is a store.Store in RAM. It has no goroutines.
type Store struct {
	mu        sync.RWMutex // guards all below
	revision  int64
	values    map[string]store.KV
	keys      []string      // of values, sorted
	history   []store.Batch // all changes after compacted, oldest first
	compacted int64         // changes up to this revision are forgotten
	watchers  map[*watcher]struct{}
	closed    bool
	fail      func(store.Txn) error
}

// New returns an empty store at revision 1, as etcd begins.
func New() *Store {
	return &Store{
		revision: 1,
		values:   map[string]store.KV{},
		watchers: map[*watcher]struct{}{},
	}
}

// FailCommits makes every following Commit return fail's error, before
// anything is written, while it is not nil: a full disk, a lost quorum.
// FailCommits(nil) ends it.
func (s *Store) FailCommits(fail func(store.Txn) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// Get returns the value, or fault.NotFound.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.usableLocked(ctx); err != nil {
		return store.KV{}, err
	}
	kv, ok := s.values[key]
	if !ok {
		return store.KV{}, fault.New(fault.NotFound, "nothing is stored as %s", key)
	}
	return clone(kv), nil
}

// List returns all values under the literal prefix, and the revision.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.usableLocked(ctx); err != nil {
		return nil, 0, err
	}
	var out []store.KV
	for i := sort.SearchStrings(s.keys, prefix); i < len(s.keys) && strings.HasPrefix(s.keys[i], prefix); i++ {
		out = append(out, clone(s.values[s.keys[i]]))
	}
	return out, s.revision, nil
}

// Commit applies the transaction, whole or not at all.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return 0, err
	}
	for _, c := range txn.If {
		if have := s.values[c.Key].Revision; have != c.Revision {
			return 0, store.ConflictError(c, have)
		}
	}
	if s.fail != nil {
		if err := s.fail(txn); err != nil {
			return 0, err
		}
	}
	next := s.revision + 1
	var events []store.Event
	for _, op := range txn.Then {
		if e, changed := s.applyLocked(op, next); changed {
			events = append(events, e)
		}
	}
	if len(events) == 0 {
		return s.revision, nil
	}
	s.revision = next
	batch := store.Batch{Revision: next, Events: events}
	s.history = append(s.history, batch)
	if len(s.history) > historyLimit {
		s.compactLocked(s.history[len(s.history)-historyLimit/2].Revision)
	}
	for w := range s.watchers {
		if !w.offer(batch) {
			s.endLocked(w)
		}
	}
	return next, nil
}

func (s *Store) applyLocked(op store.Op, revision int64) (store.Event, bool) {
	old, existed := s.values[op.Key]
	if op.Delete {
		if !existed {
			return store.Event{}, false
		}
		delete(s.values, op.Key)
		i := sort.SearchStrings(s.keys, op.Key)
		s.keys = slices.Delete(s.keys, i, i+1)
		return store.Event{KV: store.KV{Key: op.Key, Revision: revision}, Deleted: true}, true
	}
	kv := store.KV{Key: op.Key, Value: bytes.Clone(op.Value), Revision: revision, CreateRevision: old.CreateRevision}
	if !existed {
		kv.CreateRevision = revision
		s.keys = slices.Insert(s.keys, sort.SearchStrings(s.keys, op.Key), op.Key)
	}
	s.values[op.Key] = kv
	return store.Event{KV: kv}, true
}

// Revision is the newest revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.usableLocked(ctx); err != nil {
		return 0, err
	}
	return s.revision, nil
}

// Compact forgets the changes up to a revision: a watch that asks for them is
// closed at once. What is stored stays.
func (s *Store) Compact(_ context.Context, revision int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if revision > s.revision {
		return fault.New(fault.Invalid, "cannot compact up to revision %d: the newest is %d", revision, s.revision)
	}
	s.compactLocked(revision)
	return nil
}

func (s *Store) compactLocked(revision int64) {
	if revision <= s.compacted {
		return
	}
	s.compacted = revision
	i := sort.Search(len(s.history), func(i int) bool { return s.history[i].Revision > revision })
	s.history = slices.Clone(s.history[i:])
}

// Close ends all watches; every later call fails.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for w := range s.watchers {
		s.endLocked(w)
	}
	return nil
}

func (s *Store) usableLocked(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed {
		return fault.New(fault.Unavailable, "the store is closed")
	}
	return nil
}

func clone(kv store.KV) store.KV {
	kv.Value = bytes.Clone(kv.Value)
	return kv
}
