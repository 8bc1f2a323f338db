// Package storetest is the suite that every backend of store passes.
package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// deadline bounds each wait of the suite.
const deadline = 2 * time.Minute

// Run runs the suite. open returns an empty store; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, s store.Store)
	}{
		{"reading what is absent is not found", absent},
		{"a commit is read back with its revisions", readBack},
		{"each commit has a revision one above the last", revisions},
		{"a commit that changes nothing has the newest revision", changesNothing},
		{"a condition on revision 0 means absent", createOnce},
		{"a condition on a revision means unchanged since", compareAndSet},
		{"a transaction whose condition fails writes nothing", allOrNothing},
		{"deleting is remembered by conditions and forgotten by creation revisions", deletion},
		{"a list is in key order and by literal prefix", list},
		{"the empty prefix lists everything", listAll},
		{"prefixes and keys are bytes, not text", binaryKeys},
		{"an empty value is a value", emptyValue},
		{"a big value is kept whole", bigValue},
		{"values do not alias the caller's memory", aliasing},
		{"transactions over a limit are refused as invalid", limits},
		{"a transaction at the limit of operations commits", manyOps},
		{"a context that has ended is answered at once", cancelled},
		{"concurrent counters lose no increment", counters},
		{"one of many creators wins", creators},
		{"a watch delivers whole transactions in order", watchOrder},
		{"a watch delivers only its prefix", watchPrefix},
		{"a watch of everything delivers everything", watchAll},
		{"a watch begins after a revision of the past", watchPast},
		{"a watch begins after a revision of the future", watchFuture},
		{"a watch sees deletions", watchDeletion},
		{"a watch ends with its context", watchCancel},
		{"a watch ends when the store closes", watchClose},
		{"a list and a watch after it miss nothing under load", listThenWatch},
		{"a watcher that does not read blocks no writer", watchLagging},
		{"a compacted revision cannot be watched", watchCompacted},
		{"a closed store is unavailable", closed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			tt.run(t, s)
		})
	}
}

func put(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }
func del(key string) store.Op        { return store.Op{Key: key, Delete: true} }

func commit(t *testing.T, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	return commitIf(t, s, nil, ops...)
}

func commitIf(t *testing.T, s store.Store, conds []store.Cond, ops ...store.Op) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Txn{If: conds, Then: ops})
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func refuse(t *testing.T, s store.Store, kind fault.Kind, txn store.Txn) error {
	t.Helper()
	before, _ := s.Revision(t.Context())
	rev, err := s.Commit(t.Context(), txn)
	if !fault.Is(err, kind) {
		t.Fatalf("commit = revision %d, error %v; want the error kind %s", rev, err, kind)
	}
	if after, _ := s.Revision(t.Context()); after != before {
		t.Fatalf("a refused commit moved the revision from %d to %d", before, after)
	}
	return err
}

func get(t *testing.T, s store.Store, key string) store.KV {
	t.Helper()
	kv, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return kv
}

func gone(t *testing.T, s store.Store, key string) {
	t.Helper()
	if kv, err := s.Get(t.Context(), key); !fault.Is(err, fault.NotFound) {
		t.Fatalf("get %s = %+v, error %v; want not found", key, kv, err)
	}
}

func keys(t *testing.T, s store.Store, prefix string) []string {
	t.Helper()
	kvs, _, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	out := []string{}
	for _, kv := range kvs {
		out = append(out, kv.Key)
	}
	return out
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}
