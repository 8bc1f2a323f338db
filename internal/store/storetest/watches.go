package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/legation-io/legation/internal/store"
)

func next(t *testing.T, watch <-chan store.Batch) store.Batch {
	t.Helper()
	select {
	case b, ok := <-watch:
		if !ok {
			t.Fatal("the watch ended")
		}
		return b
	case <-time.After(deadline):
		t.Fatal("the watch delivered nothing")
	}
	panic("unreachable")
}

// ended drains a watch and fails unless it ends.
func ended(t *testing.T, watch <-chan store.Batch) (drained int) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case _, ok := <-watch:
			if !ok {
				return drained
			}
			drained++
		case <-timeout:
			t.Fatal("the watch does not end")
		}
	}
}

func text(b store.Batch) string {
	out := ""
	for _, e := range b.Events {
		if e.KV.Revision != b.Revision {
			return fmt.Sprintf("event of revision %d in a batch of %d", e.KV.Revision, b.Revision)
		}
		if e.Deleted {
			out += fmt.Sprintf("-%s ", e.KV.Key)
		} else {
			out += fmt.Sprintf("%s=%s ", e.KV.Key, e.KV.Value)
		}
	}
	return out
}

func watchOrder(t *testing.T, s store.Store) {
	rev, _ := s.Revision(t.Context())
	watch := s.Watch(within(t), "/a/", rev)
	for i := range 50 {
		commit(t, s, put("/a/1", fmt.Sprint(i)), put("/a/2", fmt.Sprint(i)), put("/b", "no"))
	}
	for i := range 50 {
		b := next(t, watch)
		if want := fmt.Sprintf("/a/1=%d /a/2=%d ", i, i); text(b) != want || b.Revision != rev+1+int64(i) {
			t.Fatalf("batch %d at revision %d is %s; want %sat %d", i, b.Revision, text(b), want, rev+1+int64(i))
		}
	}
}

func watchPrefix(t *testing.T, s store.Store) {
	watch := s.Watch(within(t), "/a/b/", 1)
	commit(t, s, put("/a/bc", "no"))
	commit(t, s, put("/a/b", "no"))
	commit(t, s, put("/a/c/", "no"), put("/a/b/1", "yes"))
	if got := text(next(t, watch)); got != "/a/b/1=yes " {
		t.Errorf("watched %s", got)
	}
}

func watchAll(t *testing.T, s store.Store) {
	watch := s.Watch(within(t), "", 1)
	commit(t, s, put("\x00", "1"))
	commit(t, s, put("\xff", "2"), put("/a", "3"))
	if got := text(next(t, watch)); got != "\x00=1 " {
		t.Errorf("watched %q", got)
	}
	if got := text(next(t, watch)); got != "\xff=2 /a=3 " {
		t.Errorf("watched %q", got)
	}
}

func watchPast(t *testing.T, s store.Store) {
	commit(t, s, put("/a", "1"))
	after := commit(t, s, put("/a", "2"))
	commit(t, s, put("/a", "3"))
	commit(t, s, put("/a", "4"))
	watch := s.Watch(within(t), "/a", after)
	commit(t, s, put("/a", "5"))
	for _, want := range []string{"/a=3 ", "/a=4 ", "/a=5 "} {
		if got := text(next(t, watch)); got != want {
			t.Fatalf("watched %s, want %s", got, want)
		}
	}
}

func watchFuture(t *testing.T, s store.Store) {
	rev, _ := s.Revision(t.Context())
	watch := s.Watch(within(t), "/a", rev+2)
	for i := range 3 {
		commit(t, s, put("/a", fmt.Sprint(i)))
	}
	if got := text(next(t, watch)); got != "/a=2 " {
		t.Errorf("watched %s, want what comes after revision %d", got, rev+2)
	}
}

func watchDeletion(t *testing.T, s store.Store) {
	after := commit(t, s, put("/a", "1"), put("/b", "1"))
	watch := s.Watch(within(t), "/", after)
	rev := commit(t, s, del("/a"), put("/b", "2"), del("/absent"))
	b := next(t, watch)
	want := store.Batch{Revision: rev, Events: []store.Event{
		{KV: store.KV{Key: "/a", Revision: rev}, Deleted: true},
		{KV: store.KV{Key: "/b", Value: []byte("2"), Revision: rev, CreateRevision: after}},
	}}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
}

func watchCancel(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	watch := s.Watch(ctx, "/", 1)
	commit(t, s, put("/a", "1"))
	next(t, watch)
	cancel()
	ended(t, watch)
}

func watchClose(t *testing.T, s store.Store) {
	idle, busy := s.Watch(t.Context(), "/idle", 1), s.Watch(t.Context(), "/", 1)
	commit(t, s, put("/a", "1"))
	next(t, busy)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ended(t, idle)
	ended(t, busy)
}

// listThenWatch is how every cache is filled: what a list shows and what the
// watch after its revision delivers make up the whole.
func listThenWatch(t *testing.T, s store.Store) {
	const writers, each = 4, 40
	ctx := within(t)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{put(fmt.Sprintf("/l/%d/%d", w, i), "x")}}); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			kvs, rev, err := s.List(ctx, "/l/")
			if err != nil {
				t.Errorf("list: %v", err)
				return
			}
			seen := map[string]bool{}
			for _, kv := range kvs {
				seen[kv.Key] = true
			}
			if len(seen) == writers*each {
				return // the writers were done before the list: no change will come
			}
			for b := range s.Watch(ctx, "/l/", rev) {
				if b.Revision <= rev {
					t.Errorf("the watch went back from revision %d to %d", rev, b.Revision)
				}
				rev = b.Revision
				for _, e := range b.Events {
					if seen[e.KV.Key] {
						t.Errorf("%s was delivered twice", e.KV.Key)
					}
					seen[e.KV.Key] = true
				}
				if len(seen) == writers*each {
					return
				}
			}
			t.Errorf("the watch ended with %d of %d keys seen", len(seen), writers*each)
		})
	}
	wg.Wait()
}

// watchLagging ends either with the watch ended (bounded queue) or with all
// delivered late (history), never with a writer that waits or a gap.
func watchLagging(t *testing.T, s store.Store) {
	const n = 600
	ctx := within(t)
	rev, _ := s.Revision(ctx)
	watch := s.Watch(ctx, "/a", rev)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for range n / 6 {
				if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{put("/a", "x")}}); err != nil {
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	for seen := 0; seen < n; seen++ {
		select {
		case b, ok := <-watch:
			if !ok {
				return
			}
			if rev++; b.Revision != rev {
				t.Fatalf("the watch skipped from revision %d to %d", rev-1, b.Revision)
			}
		case <-ctx.Done():
			t.Fatalf("the watch neither delivered nor ended after %d of %d", seen, n)
		}
	}
}

// Compactor is what a backend has to offer for watchCompacted.
type Compactor interface {
	Compact(ctx context.Context, revision int64) error
}

func watchCompacted(t *testing.T, s store.Store) {
	c, ok := s.(Compactor)
	if !ok {
		t.Fatalf("%T has no Compact", s)
	}
	first := commit(t, s, put("/a", "1"))
	for i := range 9 {
		commit(t, s, put("/a", fmt.Sprint(i)))
	}
	at := first + 5
	if err := c.Compact(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if n := ended(t, s.Watch(within(t), "/a", first)); n != 0 {
		t.Errorf("a watch from a compacted revision delivered %d transactions before it ended", n)
	}
	if b := next(t, s.Watch(within(t), "/a", at)); b.Revision != at+1 {
		t.Errorf("a watch after the compacted revision %d begins at %d", at, b.Revision)
	}
	if kv := get(t, s, "/a"); kv.CreateRevision != first {
		t.Errorf("/a = %+v after compaction, want it as it was", kv)
	}
}
