package etcd

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

var update = flag.Bool("update", false, "write testdata anew")

const golden = "testdata/format0.tar.gz"

// goldenKeys are values as format 0 wrote them, without kind or version.
func goldenKeys() map[string]string {
	out := map[string]string{}
	for i := range 40 {
		out[fmt.Sprintf("%sexample.org/shop/WorkloadIdentity/w%02d", store.Prefix, i)] =
			fmt.Sprintf(`{"name":"w%02d","pad":%q}`, i, strings.Repeat("x", 100*(i%7)))
	}
	return out
}

// TestGoldenIsWritten writes testdata with -update and otherwise checks that
// it is small. What it holds, the tests below read.
func TestGoldenIsWritten(t *testing.T) {
	if *update {
		old := wal.SegmentSizeBytes
		wal.SegmentSizeBytes = 64 << 10
		defer func() { wal.SegmentSizeBytes = old }()
		dir := filepath.Join(t.TempDir(), "data")
		s := openAt(t, Config{Dir: dir})
		record := `{"version":0,"minReader":0,"writtenBy":"legation 0.0.0"}`
		put(t, s, store.FormatKey, string(store.EncodeValue("legation/format", 1, []byte(record))))
		for key := range goldenKeys() {
			put(t, s, key, "first")
		}
		put(t, s, store.Prefix+"example.org/shop/WorkloadIdentity/gone", "deleted later")
		for key, value := range goldenKeys() {
			put(t, s, key, value)
		}
		if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: store.Prefix + "example.org/shop/WorkloadIdentity/gone", Delete: true}}}); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// bbolt makes the file larger than what it uses of it.
		edit(t, dbPath(dir), func(b []byte) []byte {
			used := len(bytes.TrimRight(b, "\x00"))
			return b[:(used+4095)/4096*4096]
		})
		if err := writeMark(dir); err != nil {
			t.Fatal(err)
		}
		pack(t, dir, golden)
	}
	st, err := os.Stat(golden)
	if err != nil {
		t.Fatalf("%v: write it with go test -run TestGoldenIsWritten -update", err)
	}
	if st.Size() > 200<<10 {
		t.Errorf("%s has %d bytes: too many for a repository", golden, st.Size())
	}
}

func TestAnOlderDataDirIsMigratedAfterASnapshot(t *testing.T) {
	dir := unpack(t)
	s := openAt(t, Config{Dir: dir})
	snapshot := filepath.Join(t.TempDir(), "before.db")
	frame := store.Migration{From: 0, Name: "frame values", Run: func(ctx context.Context, s store.Store) error {
		return store.Rewrite(ctx, s, store.Prefix, func(kv store.KV) (store.Op, bool, error) {
			if _, _, err := store.DecodeAs("WorkloadIdentity", 1, kv.Value); err == nil {
				return store.Op{}, true, nil
			}
			return store.Op{Key: kv.Key, Value: store.EncodeValue("WorkloadIdentity", 1, kv.Value)}, false, nil
		})
	}}
	format := store.Format{Version: 1, MinReader: 1, WrittenBy: "legation test"}
	for range 2 { // the second time there is nothing to do
		err := store.OpenFormat(t.Context(), s, format, []store.Migration{frame}, func(ctx context.Context) (string, error) {
			return snapshot, s.Snapshot(ctx, snapshot)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for key, want := range goldenKeys() {
		kv, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, data, err := store.DecodeAs("WorkloadIdentity", 1, kv.Value); err != nil || string(data) != want {
			t.Fatalf("%s = %q, %v; want %q", key, data, err, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	restored := Config{Dir: filepath.Join(t.TempDir(), "restored")}
	if err := Restore(t.Context(), restored, snapshot); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(goldenKeys(), values(t, openAt(t, restored), store.Prefix)); diff != "" {
		t.Errorf("the snapshot does not hold the data as it was (-want +got):\n%s", diff)
	}
}

func TestANewerDataDirIsRefusedAndLeftAsItWas(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openAt(t, Config{Dir: dir})
	put(t, s, store.FormatKey, string(store.EncodeValue("legation/format", 1, []byte(`{"version":9,"minReader":9,"writtenBy":"legation 9.0"}`))))
	rev, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = store.OpenFormat(t.Context(), s, store.Format{Version: 1, MinReader: 1, WrittenBy: "legation test"}, nil, nil)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "legation 9.0") {
		t.Fatalf("error %v, want a refusal that names the program that wrote it", err)
	}
	if now, _ := s.Revision(t.Context()); now != rev {
		t.Errorf("the revision moved from %d to %d", rev, now)
	}
}

func put(t *testing.T, s store.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func values(t *testing.T, s store.Store, prefix string) map[string]string {
	t.Helper()
	kvs, _, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = string(kv.Value)
	}
	return out
}

func pack(t *testing.T, dir, to string) {
	t.Helper()
	var buf bytes.Buffer
	gz, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(gz)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{tw.Close(), gz.Close(), os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, buf.Bytes(), 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// unpack returns a directory of its own with the golden data.
func unpack(t *testing.T) string {
	t.Helper()
	f, err := os.Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
