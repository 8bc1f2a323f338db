package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

func absent(t *testing.T, s store.Store) {
	gone(t, s, "/a")
	kvs, rev, err := s.List(t.Context(), "/a")
	if err != nil || len(kvs) != 0 || rev < 1 {
		t.Fatalf("list of nothing = %v at revision %d, error %v; want none at revision 1 or later", kvs, rev, err)
	}
}

func readBack(t *testing.T, s store.Store) {
	rev := commit(t, s, put("/a", "one"), put("/b", "two"))
	want := store.KV{Key: "/a", Value: []byte("one"), Revision: rev, CreateRevision: rev}
	if diff := cmp.Diff(want, get(t, s, "/a")); diff != "" {
		t.Fatalf("after the first commit (-want +got):\n%s", diff)
	}
	rev2 := commit(t, s, put("/a", "three"))
	want.Value, want.Revision = []byte("three"), rev2
	if diff := cmp.Diff(want, get(t, s, "/a")); diff != "" {
		t.Fatalf("after the second commit (-want +got):\n%s", diff)
	}
	kvs, at, err := s.List(t.Context(), "/")
	if err != nil || at != rev2 {
		t.Fatalf("list at revision %d, error %v; want %d", at, err, rev2)
	}
	wantList := []store.KV{want, {Key: "/b", Value: []byte("two"), Revision: rev, CreateRevision: rev}}
	if diff := cmp.Diff(wantList, kvs); diff != "" {
		t.Fatalf("list (-want +got):\n%s", diff)
	}
}

func revisions(t *testing.T, s store.Store) {
	last, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		rev := commit(t, s, put("/a", fmt.Sprint(i)), put("/b", "x"))
		if rev != last+1 {
			t.Fatalf("commit %d has revision %d after %d", i, rev, last)
		}
		if now, _ := s.Revision(t.Context()); now != rev {
			t.Fatalf("the store is at revision %d after a commit at %d", now, rev)
		}
		last = rev
	}
}

func changesNothing(t *testing.T, s store.Store) {
	rev := commit(t, s, put("/a", "x"))
	if got := commit(t, s, del("/none")); got != rev {
		t.Errorf("deleting an absent key has revision %d, want %d", got, rev)
	}
	if got := commitIf(t, s, []store.Cond{{Key: "/a", Revision: rev}}); got != rev {
		t.Errorf("a transaction of conditions alone has revision %d, want %d", got, rev)
	}
	refuse(t, s, fault.Conflict, store.Txn{If: []store.Cond{{Key: "/a", Revision: 0}}})
}

func createOnce(t *testing.T, s store.Store) {
	cond := []store.Cond{{Key: "/a"}}
	rev := commitIf(t, s, cond, put("/a", "first"))
	err := refuse(t, s, fault.Conflict, store.Txn{If: cond, Then: []store.Op{put("/a", "second")}})
	if !strings.Contains(err.Error(), "/a") || !strings.Contains(err.Error(), fmt.Sprint(rev)) {
		t.Errorf("the conflict %q does not name the key and its revision %d", err, rev)
	}
	if got := get(t, s, "/a"); string(got.Value) != "first" {
		t.Errorf("/a = %q after the refused creation", got.Value)
	}
}

func compareAndSet(t *testing.T, s store.Store) {
	old := commit(t, s, put("/a", "1"))
	rev := commitIf(t, s, []store.Cond{{Key: "/a", Revision: old}}, put("/a", "2"))
	refuse(t, s, fault.Conflict, store.Txn{
		If:   []store.Cond{{Key: "/a", Revision: old}},
		Then: []store.Op{put("/a", "3")},
	})
	commitIf(t, s, []store.Cond{{Key: "/a", Revision: rev}}, put("/b", "of a"))
	refuse(t, s, fault.Conflict, store.Txn{
		If:   []store.Cond{{Key: "/absent", Revision: rev}},
		Then: []store.Op{put("/c", "x")},
	})
	gone(t, s, "/c")
}

func allOrNothing(t *testing.T, s store.Store) {
	rev := commit(t, s, put("/a", "1"), put("/b", "1"))
	refuse(t, s, fault.Conflict, store.Txn{
		If:   []store.Cond{{Key: "/a", Revision: rev}, {Key: "/b", Revision: rev + 7}},
		Then: []store.Op{put("/a", "2"), del("/b"), put("/c", "2")},
	})
	if a := get(t, s, "/a"); string(a.Value) != "1" || a.Revision != rev {
		t.Errorf("/a = %+v after a refused transaction", a)
	}
	get(t, s, "/b")
	gone(t, s, "/c")
}

func deletion(t *testing.T, s store.Store) {
	first := commit(t, s, put("/a", "1"))
	commitIf(t, s, []store.Cond{{Key: "/a", Revision: first}}, del("/a"))
	gone(t, s, "/a")
	if got := keys(t, s, "/"); len(got) != 0 {
		t.Errorf("list after the deletion = %v", got)
	}
	refuse(t, s, fault.Conflict, store.Txn{If: []store.Cond{{Key: "/a", Revision: first}}, Then: []store.Op{put("/a", "2")}})
	again := commitIf(t, s, []store.Cond{{Key: "/a"}}, put("/a", "2"))
	if kv := get(t, s, "/a"); kv.CreateRevision != again || kv.Revision != again {
		t.Errorf("/a after its second creation = %+v, want both revisions %d", kv, again)
	}
}

func list(t *testing.T, s store.Store) {
	commit(t, s, put("/a/b", ""), put("/a/bc", ""), put("/a/b/2", ""), put("/a/b/10", ""), put("/a/c", ""), put("/a", ""), put("/b", ""))
	for _, tt := range []struct {
		prefix string
		want   []string
	}{
		{"/a/b", []string{"/a/b", "/a/b/10", "/a/b/2", "/a/bc"}},
		{"/a/b/", []string{"/a/b/10", "/a/b/2"}},
		{"/a/bc", []string{"/a/bc"}},
		{"/a/", []string{"/a/b", "/a/b/10", "/a/b/2", "/a/bc", "/a/c"}},
		{"/a/d", []string{}},
		{"/c", []string{}},
	} {
		if diff := cmp.Diff(tt.want, keys(t, s, tt.prefix)); diff != "" {
			t.Errorf("list %q (-want +got):\n%s", tt.prefix, diff)
		}
	}
}

func listAll(t *testing.T, s store.Store) {
	commit(t, s, put("b", ""), put("a", ""), put("\xff\xff", ""), put("\x00", ""))
	if diff := cmp.Diff([]string{"\x00", "a", "b", "\xff\xff"}, keys(t, s, "")); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func binaryKeys(t *testing.T, s store.Store) {
	commit(t, s, put("k\xff", ""), put("k\xff\xff", ""), put("k\xff\x01", ""), put("l", ""), put("k\x00", ""))
	if diff := cmp.Diff([]string{"k\xff", "k\xff\x01", "k\xff\xff"}, keys(t, s, "k\xff")); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"k\xff\xff"}, keys(t, s, "k\xff\xff")); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

func emptyValue(t *testing.T, s store.Store) {
	commit(t, s, store.Op{Key: "/nil"}, store.Op{Key: "/empty", Value: []byte{}})
	for _, key := range []string{"/nil", "/empty"} {
		if kv := get(t, s, key); len(kv.Value) != 0 {
			t.Errorf("%s = %q", key, kv.Value)
		}
	}
}

func bigValue(t *testing.T, s store.Store) {
	big := bytes.Repeat([]byte("0123456789abcdef"), (store.MaxBytes-64)/16)
	commit(t, s, store.Op{Key: "/big", Value: big})
	if kv := get(t, s, "/big"); !bytes.Equal(kv.Value, big) {
		t.Errorf("/big came back with %d bytes, want the same %d", len(kv.Value), len(big))
	}
}

func aliasing(t *testing.T, s store.Store) {
	value := []byte("kept")
	watch := s.Watch(within(t), "/", 1)
	commit(t, s, store.Op{Key: "/a", Value: value})
	copy(value, "lost")
	copy(get(t, s, "/a").Value, "lost")
	kvs, _, _ := s.List(t.Context(), "/a")
	copy(kvs[0].Value, "lost")
	batch, ok := <-watch
	if !ok || string(batch.Events[0].KV.Value) != "kept" {
		t.Fatalf("the watch delivered %+v, %v", batch, ok)
	}
	copy(batch.Events[0].KV.Value, "lost")
	if kv := get(t, s, "/a"); string(kv.Value) != "kept" {
		t.Errorf("/a = %q after callers wrote into their own memory", kv.Value)
	}
}

func limits(t *testing.T, s store.Store) {
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = put(fmt.Sprintf("/%d", i), "x")
	}
	for _, tt := range []struct {
		name string
		txn  store.Txn
		says string
	}{
		{"too many operations", store.Txn{Then: many}, "MaxOps"},
		{"too many bytes", store.Txn{Then: []store.Op{{Key: "/a", Value: make([]byte, store.MaxBytes)}}}, "MaxBytes"},
		{"a key too long", store.Txn{Then: []store.Op{put(strings.Repeat("k", store.MaxKey+1), "")}}, "MaxKey"},
		{"an empty key", store.Txn{Then: []store.Op{put("", "x")}}, "empty key"},
		{"a condition on an empty key", store.Txn{If: []store.Cond{{}}, Then: []store.Op{put("/a", "x")}}, "empty key"},
		{"one key twice", store.Txn{Then: []store.Op{put("/a", "x"), del("/a")}}, "twice"},
		{"one key twice among many", store.Txn{Then: append(many[:20:20], put("/7", ""))}, "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := refuse(t, s, fault.Invalid, tt.txn); !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the error %q does not say %q", err, tt.says)
			}
		})
	}
}

func manyOps(t *testing.T, s store.Store) {
	ops := make([]store.Op, store.MaxOps)
	conds := make([]store.Cond, store.MaxOps)
	for i := range ops {
		ops[i] = put(fmt.Sprintf("/many/%04d", i), "x")
		conds[i] = store.Cond{Key: ops[i].Key}
	}
	rev := commitIf(t, s, conds, ops...)
	kvs, _, err := s.List(t.Context(), "/many/")
	if err != nil || len(kvs) != store.MaxOps {
		t.Fatalf("list = %d values, error %v; want %d", len(kvs), err, store.MaxOps)
	}
	for _, kv := range kvs {
		if kv.Revision != rev {
			t.Fatalf("%s has revision %d, want %d as all of its transaction", kv.Key, kv.Revision, rev)
		}
	}
}

func cancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{put("/a", "x")}}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Get(ctx, "/a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := s.List(ctx, "/a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Revision(ctx); !fault.Is(err, fault.Unavailable) {
		t.Errorf("revision: %v", err)
	}
	if _, ok := <-s.Watch(ctx, "/a", 0); ok {
		t.Error("a watch delivered something")
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("the answers took %s", d)
	}
	gone(t, s, "/a")
}

func closed(t *testing.T, s store.Store) {
	commit(t, s, put("/a", "x"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "/a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("get: %v", err)
	}
	if _, _, err := s.List(t.Context(), "/a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{put("/a", "y")}}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("commit: %v", err)
	}
	if _, ok := <-s.Watch(t.Context(), "/a", 0); ok {
		t.Error("a watch of a closed store delivered something")
	}
}
