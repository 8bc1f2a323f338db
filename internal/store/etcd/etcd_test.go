package etcd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/storetest"
)

func leakTestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t *testing.T, cfg Config) *Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open %s: %v", cfg.Dir, err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return openAt(t, Config{Dir: t.TempDir()}) })
}

func TestDataSurvivesAnOrderlyEnd(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, Config{Dir: dir})
	rev := put(t, s, "/a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("the second close: %v", err)
	}
	s = openAt(t, Config{Dir: dir})
	if kv, err := s.Get(t.Context(), "/a"); err != nil || kv.Revision != rev || string(kv.Value) != "1" {
		t.Errorf("/a = %+v, %v", kv, err)
	}
	if b := <-s.Watch(t.Context(), "/", rev-1); b.Revision != rev {
		t.Errorf("history was not kept: %+v", b)
	}
}

// TestThereIsNoListeningSocket looks at every socket of this process.
func TestThereIsNoListeningSocket(t *testing.T) {
	before := listening(t)
	s := openAt(t, Config{Dir: t.TempDir()})
	put(t, s, "/a", "1")
	for inode, what := range listening(t) {
		if _, old := before[inode]; !old {
			t.Errorf("the store listens: %s", what)
		}
	}
}

// listening returns this process's listening TCP and Unix sockets by inode.
func listening(t *testing.T) map[string]string {
	t.Helper()
	mine := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				mine[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	out := map[string]string{}
	for _, table := range []struct {
		file         string
		state, inode int
		listen       string
	}{{"tcp", 3, 9, "0A"}, {"tcp6", 3, 9, "0A"}, {"unix", 3, 6, "00010000"}} {
		data, err := os.ReadFile("/proc/self/net/" + table.file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > table.inode && f[table.state] == table.listen && mine[f[table.inode]] {
				out[f[table.inode]] = table.file + " " + line
			}
		}
	}
	return out
}

// TestA04FilesAreForTheirOwnerOnly belongs to attack A04.
func TestA04FilesAreForTheirOwnerOnly(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "data")
	s := openAt(t, Config{Dir: dir, snapEvery: 10})
	sawSnap := false
	for i := range 60 {
		put(t, s, "/a", fmt.Sprint(i))
	}
	check := func() {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			want := fs.FileMode(0o600)
			if e.IsDir() {
				want = 0o700
			}
			if info.Mode().Perm() != want {
				t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), want)
			}
			sawSnap = sawSnap || strings.HasSuffix(path, ".snap")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check()
	snapshot := filepath.Join(dir, "copy")
	if err := s.Snapshot(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check()
	if !sawSnap {
		t.Error("no .snap file was made: their mode was not seen")
	}
}

func TestADataDirInUseIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "hold", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line := readLine(t, bufio.NewReader(out)); line != "open" {
		t.Fatalf("the child said %q", line)
	}
	begin := time.Now()
	_, err = Open(t.Context(), Config{Dir: dir})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), fmt.Sprint("process ", cmd.Process.Pid)) || !strings.Contains(err.Error(), dir) {
		t.Errorf("open: %v; want it to name the directory and process %d", err, cmd.Process.Pid)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("the refusal took %s", d)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, Config{Dir: dir})
	if _, err := Open(t.Context(), Config{Dir: dir}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a second open in one process: %v", err)
	}
	put(t, s, "/a", "1")
}

func TestOpenIsBoundedByItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if s, err := Open(ctx, Config{Dir: dir}); err == nil {
		s.Close()
		t.Error("opened although the context had ended")
	}
	openAt(t, Config{Dir: dir}) // what was begun is no obstacle
	if _, err := Open(t.Context(), Config{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("open without a directory: %v", err)
	}
}

func TestConcurrentCommitsShareTheWritesToTheDisk(t *testing.T) {
	s := openAt(t, Config{Dir: t.TempDir()})
	const n = 400
	before := fsyncs(t)
	var wg sync.WaitGroup
	for w := range 40 {
		wg.Go(func() {
			for i := range n / 40 {
				if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: fmt.Sprint("/", w, "/", i)}}}); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if used := fsyncs(t) - before; used == 0 || used > n/2 {
		t.Errorf("%d commits of 40 writers took %d fsyncs of the log", n, used)
	}
}

func fsyncs(t *testing.T) uint64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "etcd_disk_wal_fsync_duration_seconds" {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	t.Fatal("etcd does not count its fsyncs")
	return 0
}

func TestALaggingWatcherIsEndedOnceItsHistoryIsGone(t *testing.T) {
	s := openAt(t, Config{Dir: t.TempDir()})
	watch := s.Watch(t.Context(), "/", s.kv.Rev())
	for i := range 1000 {
		put(t, s, "/a", fmt.Sprint(i))
	}
	s.compact(10)
	n := 0
	timeout := time.After(time.Minute)
	for open := true; open; {
		select {
		case _, open = <-watch:
			if open {
				n++
			}
		case <-timeout:
			t.Fatal("the watch did not end")
		}
	}
	if n == 0 || n == 1000 {
		t.Errorf("%d of 1000 transactions were delivered; want those that were queued", n)
	}
}

func TestEtcdSpeaksThroughSlog(t *testing.T) {
	var buf bytes.Buffer
	s := openAt(t, Config{Dir: t.TempDir(), Log: slog.New(slog.NewJSONHandler(&buf, nil))})
	put(t, s, "/a", "1")
	s.srv.Logger().Info("not heard")
	s.srv.Logger().Named("x").Warn("heard")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := buf.String(); strings.Contains(got, "not heard") || !strings.Contains(got, `"level":"WARN","msg":"etcd: heard"`) {
		t.Errorf("the log reads:\n%s", got)
	}
}
