package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
)

func format(version, minReader int) store.Format {
	return store.Format{Version: version, MinReader: minReader, WrittenBy: fmt.Sprintf("legation 0.%d", version)}
}

func noSnapshot(context.Context) (string, error) { panic("a snapshot was taken for nothing") }

func contents(t *testing.T, s store.Store) map[string]string {
	t.Helper()
	kvs, _, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = string(kv.Value)
	}
	return out
}

func TestAnEmptyStoreGetsAFormatOnce(t *testing.T) {
	s := memory.New()
	for range 2 {
		if err := store.OpenFormat(t.Context(), s, format(2, 1), nil, noSnapshot); err != nil {
			t.Fatal(err)
		}
		if rev, _ := s.Revision(t.Context()); rev != 2 {
			t.Errorf("the store is at revision %d, want one write", rev)
		}
	}
}

func TestDataThatAdmitsThisProgramIsLeftAlone(t *testing.T) {
	s := memory.New()
	if err := store.OpenFormat(t.Context(), s, format(3, 2), nil, noSnapshot); err != nil {
		t.Fatal(err)
	}
	before := contents(t, s)
	if err := store.OpenFormat(t.Context(), s, format(2, 1), nil, noSnapshot); err != nil {
		t.Fatalf("format 2 on data of format 3 that admits it: %v", err)
	}
	if diff := cmp.Diff(before, contents(t, s)); diff != "" {
		t.Errorf("the data changed:\n%s", diff)
	}
}

func TestRefusedDataIsLeftAsItWas(t *testing.T) {
	record := func(json string) []byte { return store.EncodeValue("legation/format", 1, []byte(json)) }
	for _, tt := range []struct {
		name  string
		key   string
		value []byte
		says  []string
	}{
		{"newer data", store.FormatKey, record(`{"version":7,"minReader":5,"writtenBy":"legation 9.9","futureField":1}`),
			[]string{"legation 9.9", "format 7", "format 5 and later", "start the newer program"}},
		{"data under migration by a newer program", store.FormatKey, record(`{"version":2,"minReader":7,"writtenBy":"legation 9.9","migratingTo":7}`),
			[]string{"is being migrated by legation 9.9"}},
		{"older data without a migration", store.FormatKey, record(`{"version":0,"minReader":0,"writtenBy":"legation 0.0"}`),
			[]string{"knows no way from 0 to 1"}},
		{"a record that is no record", store.FormatKey, []byte("garbage"), []string{"cannot be read"}},
		{"a record of a newer kind", store.FormatKey, store.EncodeValue("legation/format", 2, nil), []string{"newer legation"}},
		{"a record that is no JSON", store.FormatKey, record(`{`), []string{"cannot be read"}},
		{"data without a record", store.Key{TrustDomain: "td", Namespace: "n", Kind: "k", Name: "x"}.String(), nil,
			[]string{"/legation/v1/td/n/k/x", "no format record", "restore a snapshot"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := memory.New()
			if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: tt.key, Value: tt.value}}}); err != nil {
				t.Fatal(err)
			}
			err := store.OpenFormat(t.Context(), s, format(2, 1), nil, noSnapshot)
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error %v, want it refused as invalid", err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if rev, _ := s.Revision(t.Context()); rev != 2 {
				t.Errorf("the store moved to revision %d", rev)
			}
		})
	}
}

// countdown is a store whose n-th commit and all later ones fail: a crash.
type countdown struct {
	store.Store
	left int
}

var errCrash = errors.New("killed")

func (c *countdown) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if c.left--; c.left < 0 {
		return 0, errCrash
	}
	return c.Store.Commit(ctx, txn)
}

// upcase and exclaim are idempotent by the version of each value.
func step(from int, change func(string) string) store.Migration {
	return store.Migration{From: from, Name: "test", Run: func(ctx context.Context, s store.Store) error {
		return store.Rewrite(ctx, s, store.Prefix, func(kv store.KV) (store.Op, bool, error) {
			kind, version, data, err := store.DecodeValue(kv.Value)
			if err != nil || version > from {
				return store.Op{}, true, err
			}
			return store.Op{Key: kv.Key, Value: store.EncodeValue(kind, from+1, []byte(change(string(data))))}, false, nil
		})
	}}
}

func TestMigrationsResumeAfterACrashAtAnyCommit(t *testing.T) {
	migrations := []store.Migration{
		step(2, func(s string) string { return s + "!" }), // order in the list does not matter
		step(1, strings.ToUpper),
	}
	for crashAfter := range 100 {
		s := memory.New()
		if err := store.OpenFormat(t.Context(), s, format(1, 1), nil, nil); err != nil {
			t.Fatal(err)
		}
		for i := range 600 { // three pieces
			key := fmt.Sprintf("%std/n/k/%d", store.Prefix, i)
			if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: key, Value: store.EncodeValue("k", 1, []byte("a"))}}}); err != nil {
				t.Fatal(err)
			}
		}
		snapshots := 0
		snapshot := func(context.Context) (string, error) {
			snapshots++
			return fmt.Sprint("/snapshots/", snapshots), nil
		}
		err := store.OpenFormat(t.Context(), &countdown{s, crashAfter}, format(3, 2), migrations, snapshot)
		if crashAfter > 0 && err != nil {
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			old := store.OpenFormat(t.Context(), s, format(2, 1), migrations, noSnapshot)
			if !fault.Is(old, fault.Invalid) || !strings.Contains(old.Error(), "is being migrated") {
				t.Fatalf("crash after %d commits: an older program was let in: %v", crashAfter, old)
			}
		}
		if err := store.OpenFormat(t.Context(), s, format(3, 2), migrations, snapshot); err != nil {
			t.Fatalf("crash after %d commits, resumed: %v", crashAfter, err)
		}
		if want := 1; snapshots != want && crashAfter > 0 {
			t.Fatalf("crash after %d commits: %d snapshots were taken, want only the one of the untouched data", crashAfter, snapshots)
		}
		for key, value := range contents(t, s) {
			if key == store.FormatKey {
				if strings.Contains(value, "migratingTo") || !strings.Contains(value, `"version":3`) {
					t.Fatalf("the record afterwards: %s", value)
				}
				continue
			}
			if _, v, data, err := store.DecodeValue([]byte(value)); err != nil || v != 3 || string(data) != "A!" {
				t.Fatalf("crash after %d commits: %s = version %d, %q, %v", crashAfter, key, v, data, err)
			}
		}
		if err == nil {
			if crashAfter < 8 {
				t.Fatalf("the migration took only %d commits: it is not done in pieces", crashAfter)
			}
			return
		}
	}
	t.Fatal("the migration never ended")
}

func TestWithoutASnapshotNothingIsMigrated(t *testing.T) {
	for name, snapshot := range map[string]func(context.Context) (string, error){
		"it fails":     func(context.Context) (string, error) { return "", errors.New("no room") },
		"none is told": nil,
	} {
		s := memory.New()
		if err := store.OpenFormat(t.Context(), s, format(1, 1), nil, nil); err != nil {
			t.Fatal(err)
		}
		before := contents(t, s)
		run := store.Migration{From: 1, Run: func(context.Context, store.Store) error { panic("migrated") }}
		if err := store.OpenFormat(t.Context(), s, format(2, 1), []store.Migration{run}, snapshot); err == nil {
			t.Errorf("%s: no error", name)
		}
		if diff := cmp.Diff(before, contents(t, s)); diff != "" {
			t.Errorf("%s: the data changed:\n%s", name, diff)
		}
	}
}

func TestRewriteCanRenameAndRefusesARace(t *testing.T) {
	s := memory.New()
	put := func(key, value string) store.Op { return store.Op{Key: key, Value: []byte(value)} }
	if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{put("/a/1", "x"), put("/a/2", "y"), put("/b/1", "z")}}); err != nil {
		t.Fatal(err)
	}
	err := store.Rewrite(t.Context(), s, "/a/", func(kv store.KV) (store.Op, bool, error) {
		return put("/c"+kv.Key, string(kv.Value)), false, nil
	})
	want := map[string]string{"/c/a/1": "x", "/c/a/2": "y", "/b/1": "z"}
	if diff := cmp.Diff(want, contents(t, s)); err != nil || diff != "" {
		t.Errorf("error %v (-want +got):\n%s", err, diff)
	}
	err = store.Rewrite(t.Context(), s, "/b/", func(kv store.KV) (store.Op, bool, error) {
		_, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{put(kv.Key, "newer")}})
		return put(kv.Key, "stale"), false, err
	})
	if !fault.Is(err, fault.Conflict) || contents(t, s)["/b/1"] != "newer" {
		t.Errorf("a value that changed meanwhile: %v, %s", err, contents(t, s)["/b/1"])
	}
}
