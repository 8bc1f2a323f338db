package etcd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// treeHash is what a directory holds, names and bytes, but for the lock.
func treeHash(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "lock" {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintln(h, path, len(data))
		h.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func logFile(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(walDir(dir), "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no log in %s: %v", dir, err)
	}
	return names[0]
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x10; return b }
}

func TestADamagedDataDirIsRefusedAndLeftAsItWas(t *testing.T) {
	remove := func(t *testing.T, path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		says   string
	}{
		{"the page file is missing", func(t *testing.T, dir string) { remove(t, dbPath(dir)); remove(t, markPath(dir)) }, "is missing"},
		{"the log is missing", func(t *testing.T, dir string) { remove(t, walDir(dir)) }, "is missing"},
		{"the page file is empty", func(t *testing.T, dir string) {
			remove(t, markPath(dir))
			edit(t, dbPath(dir), func([]byte) []byte { return nil })
		}, "cut short"},
		{"the page file is cut short", func(t *testing.T, dir string) {
			remove(t, markPath(dir))
			edit(t, dbPath(dir), func(b []byte) []byte { return b[:16<<10] })
		}, "cut short"},
		{"the page file is text", func(t *testing.T, dir string) {
			remove(t, markPath(dir))
			edit(t, dbPath(dir), func(b []byte) []byte { return bytes.Repeat([]byte("text"), 10_000) })
		}, "meta pages"},
		{"a bit of the page file flipped since it was closed", func(t *testing.T, dir string) {
			edit(t, dbPath(dir), flip(9000))
		}, "not as it was when the store was closed"},
		{"the log is cut short", func(t *testing.T, dir string) {
			edit(t, logFile(t, dir), func(b []byte) []byte { return b[:8<<10] })
		}, "cut short"},
		{"a bit of the log flipped", func(t *testing.T, dir string) {
			edit(t, logFile(t, dir), flip(4000))
		}, "member/wal"},
		{"the log is of another store", func(t *testing.T, dir string) {
			other := filepath.Join(t.TempDir(), "other")
			s := openAt(t, Config{Dir: other})
			s.Close()
			remove(t, walDir(dir))
			if err := os.CopyFS(walDir(dir), os.DirFS(walDir(other))); err != nil {
				t.Fatal(err)
			}
		}, "comes from elsewhere"},
		{"the mark is no JSON", func(t *testing.T, dir string) {
			edit(t, markPath(dir), func([]byte) []byte { return []byte("{") })
		}, "closed.json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := unpack(t)
			tt.damage(t, dir)
			before := treeHash(t, dir)
			s, err := Open(t.Context(), Config{Dir: dir})
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			for _, want := range []string{dir, "damaged", "restore a snapshot", tt.says} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if !fault.Is(err, fault.Internal) {
				t.Errorf("the kind of %v is %s", err, fault.KindOf(err))
			}
			if treeHash(t, dir) != before {
				t.Error("the refused directory was changed")
			}
		})
	}
}

// TestFlippedBitsAreNeverServed flips bits all over the page file of a store
// that was not closed in order, so that only what pages and values say of
// themselves can tell.
func TestFlippedBitsAreNeverServed(t *testing.T) {
	dir := unpack(t)
	if err := os.Remove(markPath(dir)); err != nil {
		t.Fatal(err)
	}
	pristine, err := os.ReadFile(dbPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	facts, err := verifyPages(dbPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	want := contentsOf(t, dbPath(dir))
	used := len(bytes.TrimRight(pristine, "\x00"))
	f, err := os.OpenFile(dbPath(dir), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused, harmless := 0, 0
	for at := 0; at < used; at += 31 {
		if _, err := f.WriteAt([]byte{pristine[at] ^ 0x04}, int64(at)); err != nil {
			t.Fatal(err)
		}
		switch got, err := verifyPages(dbPath(dir)); {
		case err != nil || got != facts:
			refused++
		default:
			harmless++ // a free page, padding, the older meta page
			if diff := cmp.Diff(want, contentsOf(t, dbPath(dir))); diff != "" {
				t.Errorf("the bit flipped at %d passed and changed what is stored:\n%.2000s", at, diff)
			}
		}
		if _, err := f.WriteAt(pristine[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d bytes in use: %d flips were found, %d hit nothing that counts", used, refused, harmless)
	if refused == 0 {
		t.Error("no flip was found")
	}
}

// contentsOf is the history in a page file as readers see it, except what
// only the mark of an orderly end protects: the names in deletions, and the
// order within a transaction.
func contentsOf(t *testing.T, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := walkPages(path, func(bucket string, key, value []byte) error {
		if bucket == "key" && len(key) == 17 {
			var kv mvccpb.KeyValue
			if err := kv.Unmarshal(value); err != nil {
				return err
			}
			out[fmt.Sprintf("%s@%d", kv.Key, kv.ModRevision)] = fmt.Sprintf("%x since %d", kv.Value, kv.CreateRevision)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// FuzzWalkPages feeds it page files that no program wrote.
func FuzzWalkPages(f *testing.F) {
	f.Add(make([]byte, 8192), uint32(0), []byte{1})
	base := func(t *testing.T) []byte {
		data, err := os.ReadFile(dbPath(unpack(t)))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.TrimRight(data, "\x00")
	}
	var pages []byte
	f.Fuzz(func(t *testing.T, raw []byte, at uint32, patch []byte) {
		if pages == nil {
			pages = base(t)
		}
		data := bytes.Clone(pages)
		data = append(data, make([]byte, 8192)...)
		copy(data[int(at)%len(data):], patch)
		if len(raw) > 8192 {
			data = raw
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = verifyPages(path) // returns
	})
}

func TestSnapshotsAreRestoredWhole(t *testing.T) {
	s := openAt(t, Config{Dir: t.TempDir()})
	first := put(t, s, "/a", "1")
	rev := put(t, s, "/a", "2")
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := s.Snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := s.Snapshot(t.Context(), path); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second snapshot of that name: %v", err)
	}
	put(t, s, "/a", "3")

	cfg := Config{Dir: filepath.Join(t.TempDir(), "restored")}
	if err := Restore(t.Context(), cfg, path); err != nil {
		t.Fatal(err)
	}
	if err := Restore(t.Context(), cfg, path); !fault.Is(err, fault.Conflict) {
		t.Errorf("a restore over data: %v", err)
	}
	for range 2 {
		r := openAt(t, cfg)
		want := store.KV{Key: "/a", Value: []byte("2"), Revision: rev, CreateRevision: first}
		if got, err := r.Get(t.Context(), "/a"); err != nil || !cmp.Equal(got, want) {
			t.Errorf("/a = %+v, %v; want %+v", got, err, want)
		}
		if next := put(t, r, "/b", "1"); next <= rev {
			t.Errorf("the next revision is %d, want it after %d", next, rev)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func([]byte) []byte{
		"a flipped bit": flip(9000),
		"cut short":     func(b []byte) []byte { return b[:len(b)-4096] },
		"no snapshot":   func([]byte) []byte { return []byte("hello") },
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bad, change(data), 0o600); err != nil {
			t.Fatal(err)
		}
		into := Config{Dir: filepath.Join(t.TempDir(), "never")}
		if err := Restore(t.Context(), into, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		for _, dir := range []string{into.Dir, into.Dir + ".restoring"} {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s: %s was left", name, dir)
			}
		}
	}
}
