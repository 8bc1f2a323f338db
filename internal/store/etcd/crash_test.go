package etcd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/store"
)

// childCommits prints "key revision" after each acknowledged commit, and some
// snapshots and compactions happen in between.
func childCommits(ctx context.Context, dir string) error {
	s, err := Open(ctx, Config{Dir: dir, snapEvery: 50, history: 30, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	defer s.Close()
	begin, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // of stdout
	for w := range 4 {
		wg.Go(func() {
			for i := range 100_000 {
				key := fmt.Sprintf("/c/%d/%d/%d", begin, w, i)
				rev, err := s.Commit(ctx, store.Txn{
					If:   []store.Cond{{Key: key}},
					Then: []store.Op{{Key: key, Value: []byte(key)}, {Key: fmt.Sprint("/latest/", w), Value: []byte(key)}},
				})
				if err != nil {
					fmt.Fprintln(os.Stderr, "commit:", err)
					return
				}
				mu.Lock()
				fmt.Println(key, rev)
				mu.Unlock()
				if i%40 == 39 {
					s.compact(30)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// TestNothingAcknowledgedIsLostByKill9 kills the process ten times at random
// instants, some of them while it starts.
func TestNothingAcknowledgedIsLostByKill9(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]int64{}
	for round := range 10 {
		cmd := child(t, "commit until killed", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if round%3 == 2 { // while it starts
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
		} else {
			for range 1 + rand.IntN(400) {
				note(t, readLine(t, lines), acknowledged)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it had said before it died
			line, err := lines.ReadString('\n')
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			note(t, line, acknowledged)
		}
		_ = cmd.Wait()

		s := openAt(t, Config{Dir: dir})
		kvs, _, err := s.List(t.Context(), "/c/")
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]int64{}
		for _, kv := range kvs {
			if string(kv.Value) != kv.Key {
				t.Fatalf("%s = %q", kv.Key, kv.Value)
			}
			have[kv.Key] = kv.Revision
		}
		for key, rev := range acknowledged {
			if have[key] != rev {
				t.Fatalf("round %d: %s was acknowledged at revision %d and is there at %d", round, key, rev, have[key])
			}
		}
		if round%2 == 0 { // the next start finds an orderly end, or not
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			put(t, s, fmt.Sprint("/between/", round), "x")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(markPath(dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(acknowledged) == 0 {
		t.Error("nothing was acknowledged in any round")
	}
	t.Logf("%d commits were acknowledged", len(acknowledged))
}

func note(t *testing.T, line string, acknowledged map[string]int64) {
	t.Helper()
	var key string
	var rev int64
	if _, err := fmt.Sscanf(line, "%s %d", &key, &rev); err != nil {
		t.Fatalf("the child said %q: %v", line, err)
	}
	acknowledged[key] = rev
}

func TestAFirstStartThatWasInterruptedIsBegunAgain(t *testing.T) {
	t.Run("before anything was committed", func(t *testing.T) {
		dir := t.TempDir()
		if out, err := child(t, "die while it begins", dir).Output(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		put(t, openAt(t, Config{Dir: dir}), "/a", "1")
	})
	t.Run("before its log had a segment", func(t *testing.T) {
		dir := t.TempDir()
		if out, err := child(t, "die while it begins", dir).Output(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := os.RemoveAll(walDir(dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(walDir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, openAt(t, Config{Dir: dir}), "/a", "1")
	})
	t.Run("before its file of pages had one", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(dbPath(dir)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dbPath(dir), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, openAt(t, Config{Dir: dir}), "/a", "1")
	})
	for i := range 5 {
		t.Run(fmt.Sprint("at a random instant, ", i), func(t *testing.T) {
			dir := t.TempDir()
			cmd := child(t, "commit until killed", dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(10+rand.IntN(100)) * time.Millisecond)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			put(t, openAt(t, Config{Dir: dir}), "/a", "1")
		})
	}
}
