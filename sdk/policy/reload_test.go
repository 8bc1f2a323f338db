package policy_test

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// running runs a source until the test ends.
func running(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func eventually(t *testing.T, e *policy.Engine, in policy.Input, want bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		_, changed := e.Loaded()
		d := e.Decide(t.Context(), &in)
		if d.Allowed == want && d.Cause != policy.CauseNoPolicy {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("allowed stays %v (%s)", d.Allowed, d.Cause)
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // what time decided, another time may decide otherwise
		}
	}
}

func write(t testing.TB, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

const (
	yes = "package legation\nallow := true\n"
	no  = "package legation\nallow := false\n"
)

func TestAFolderIsFollowed(t *testing.T) {
	dir := t.TempDir()
	in := ask("a", "b", "predict", "llm", "m")
	e := empty()
	file := filepath.Join(dir, "p.rego")
	write(t, file, yes)
	// An hour: what follows is seen by the watcher.
	running(t, func(ctx context.Context) error { return policy.Directory{Path: dir, Poll: time.Hour}.Run(ctx, e) })
	eventually(t, e, in, true)

	write(t, file, no) // written over
	eventually(t, e, in, false)
	write(t, file+".new", yes) // an editor's rename
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	eventually(t, e, in, true)
	write(t, file, "package legation\nallow := ") // half written: the one before stays
	write(t, filepath.Join(dir, "sub", "data.json"), "{")
	write(t, filepath.Join(dir, "p_test.rego"), "package legation\ntest_x := if")
	if err := os.Remove(file); err != nil { // and so it does when it is gone
		t.Fatal(err)
	}
	if d := e.Decide(t.Context(), &in); !d.Allowed {
		t.Errorf("the policy before is not in force: %+v", d)
	}
	write(t, filepath.Join(dir, "sub", "deeper", "q.rego"), no) // in a folder that is new
	eventually(t, e, in, false)
	write(t, filepath.Join(dir, "sub", "deeper", "q.rego"), yes)
	eventually(t, e, in, true)
}

func TestAMountedConfigMapIsFollowed(t *testing.T) {
	dir := t.TempDir()
	in := ask("a", "b", "predict", "llm", "m")
	swap := func(n, content string) {
		write(t, filepath.Join(dir, n, "p.rego"), content)
		if err := os.Symlink(n, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1", yes)
	if err := os.Symlink(filepath.Join("..data", "p.rego"), filepath.Join(dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	e := empty()
	running(t, func(ctx context.Context) error { return policy.Directory{Path: dir, Poll: time.Hour}.Run(ctx, e) })
	eventually(t, e, in, true)
	swap("..2", no)
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, e, in, false)
}

func TestAFolderThatCannotBeWatchedIsPolled(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "later")
	in := ask("a", "b", "predict", "llm", "m")
	e := empty()
	running(t, func(ctx context.Context) error {
		return policy.Directory{Path: dir, Poll: 20 * time.Millisecond}.Run(ctx, e)
	})
	write(t, filepath.Join(dir, "p.rego"), yes)
	eventually(t, e, in, true)
}

func TestABundleFileIsFollowed(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	in := ask("a", "b", "predict", "llm", "m")
	f := policy.BundleFile{Path: filepath.Join(dir, "b.tar.gz"), Keys: []policy.Key{s.public()}, State: filepath.Join(t.TempDir(), "highest"), Poll: time.Hour}
	put := func(n int, rules string) { write(t, f.Path, string(pack(t, s.sign(t, revision(n, rules))))) }
	put(1, "allow := true")
	e := empty()
	running(t, func(ctx context.Context) error { return f.Run(ctx, e) })
	eventually(t, e, in, true)
	put(2, "allow := false")
	eventually(t, e, in, false)
	put(1, "allow := true") // rolled back: refused
	put(3, "allow := input.operation == \"predict\"")
	eventually(t, e, in, true)
	if loaded, _ := e.Loaded(); loaded[0].Version != "3" {
		t.Errorf("%+v in force", loaded)
	}
}
