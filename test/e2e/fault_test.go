package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/test/e2e/world"
)

// tree is every file below dir with the hash of its content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" { // it names who tried
			return err
		}
		raw, err := os.ReadFile(path)
		files[path] = fmt.Sprintf("%d bytes %x", len(raw), sha256.Sum256(raw))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(t testing.TB, dir string, before map[string]string) {
	t.Helper()
	after := tree(t, dir)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s was overwritten: %s, was %s", path, after[path], was)
		}
	}
}

func TestASocketInUseIsNotStolen(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	// A second control plane with its own data at the same admin socket.
	second := w.NewServer("cp2")
	second.Admin = w.Server.Admin
	if code, said := second.Refuses(); code == 0 || !strings.Contains(said, "somebody serves "+w.Server.Admin+" already") {
		t.Errorf("exit code %d, said %q", code, said)
	}
	// The same port.
	second.Admin, second.Listen = w.Path("cp2.sock"), w.Server.Listen
	if code, said := second.Refuses(); code == 0 || !strings.Contains(said, "listen: ") || !strings.Contains(said, "address already in use") {
		t.Errorf("exit code %d, said %q", code, said)
	}
	// The same metrics port.
	second.Listen, second.Metrics = w.IP()+":15012", w.Server.Metrics
	if code, said := second.Refuses(); code == 0 || !strings.Contains(said, "metrics: ") || !strings.Contains(said, "address already in use") {
		t.Errorf("exit code %d, said %q", code, said)
	}
	token := w.Token("n2")
	other := w.NewNode("n2", "--join-token-file", w.Write("t2", token.Token, 0o600), "--bundle-hash", token.BundleHash)
	other.Socket = n.Socket
	if r := w.Command(other.Argv()...); r.Code == 0 || !strings.Contains(r.Stderr, "somebody serves "+n.Socket+" already") {
		t.Errorf("exit code %d, said %q", r.Code, r.Stderr)
	}
	other.Socket = w.Write("a-file", "mine", 0o644)
	if r := w.Command(other.Argv()...); r.Code == 0 || !strings.Contains(r.Stderr, "is not a socket") {
		t.Errorf("exit code %d, said %q", r.Code, r.Stderr)
	}
	if raw, _ := os.ReadFile(other.Socket); string(raw) != "mine" {
		t.Error("a file was overwritten by a socket")
	}
	// Both first ones are as they were.
	w.JSON(nil, "status")
	if st, err := n.Status(); err != nil || !st.Connected {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestADataFolderHasOneOwner(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	second := w.NewServer("cp2")
	second.DataDir = w.Server.DataDir
	started := time.Now()
	code, said := second.Refuses()
	if code == 0 || !strings.Contains(said, second.DataDir) {
		t.Errorf("exit code %d, said %q", code, said)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	// An agent's sealed cache, too.
	token := w.Token("n2")
	other := w.NewNode("n2", "--join-token-file", w.Write("t2", token.Token, 0o600), "--bundle-hash", token.BundleHash)
	other.DataDir = n.DataDir
	r := w.Command(other.Argv()...)
	if r.Code == 0 || !strings.Contains(r.Stderr, n.DataDir) {
		t.Errorf("exit code %d, said %q", r.Code, r.Stderr)
	}
	w.JSON(nil, "status")
}

func TestADamagedDataFolderIsRefusedAndLeftAsItIs(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	w.Join("n1").Stop()
	w.Apply(world.Identity("a", "n1", "unix:uid:1"))
	w.Server.Stop()
	good := w.Path("good")
	copyTree(t, w.Server.DataDir, good)
	var db string
	for path := range tree(t, good) {
		if strings.HasSuffix(path, "/db") {
			db, _ = filepath.Rel(good, path)
		}
	}
	if db == "" {
		t.Fatal("there is no file called db in the store")
	}
	for name, damage := range map[string]func(raw []byte) []byte{
		"a byte of every page flipped": func(raw []byte) []byte {
			for i := 100; i < len(raw); i += 4096 {
				raw[i] ^= 0xff
			}
			return raw
		},
		"cut in half":                     func(raw []byte) []byte { return raw[:len(raw)/2] },
		"emptied":                         func([]byte) []byte { return nil },
		"overwritten with something else": func([]byte) []byte { return []byte(strings.Repeat("not a database ", 4096)) },
	} {
		t.Run(name, func(t *testing.T) {
			os.RemoveAll(w.Server.DataDir)
			copyTree(t, good, w.Server.DataDir)
			path := filepath.Join(w.Server.DataDir, db)
			raw, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, damage(raw), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := tree(t, w.Server.DataDir)
			code, said := w.Server.Refuses()
			if code == 0 || strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") || !strings.Contains(said, w.Server.DataDir) {
				t.Errorf("exit code %d, said %q", code, said)
			}
			sameTree(t, w.Server.DataDir, before)
		})
	}
	// What was not damaged serves again.
	os.RemoveAll(w.Server.DataDir)
	copyTree(t, good, w.Server.DataDir)
	w.Server.Start()
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheKeyEncryptionKeyIsNeitherLostNorReplacedSilently(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	w.Server.Stop()
	kek := filepath.Join(w.Server.DataDir, "kek")
	key, err := os.ReadFile(kek)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		change func()
		says   string
	}{
		{"missing", func() { os.Remove(kek) }, "no key-encryption key at " + kek},
		{"another one", func() { os.WriteFile(kek, []byte(strings.Repeat("k", 32)), 0o600) }, "key-encryption key"},
		{"cut short", func() { os.WriteFile(kek, key[:16], 0o600) }, "has 16 bytes, want 32"},
		{"readable by others", func() { os.WriteFile(kek, key, 0o600); os.Chmod(kek, 0o644) }, "has mode 0644"},
		{"a folder", func() { os.Remove(kek); os.Mkdir(kek, 0o700) }, kek},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.change()
			code, said := w.Server.Refuses()
			if code == 0 || !strings.Contains(said, row.says) || strings.Contains(said, string(key)) {
				t.Errorf("exit code %d, said %q, want %q", code, said, row.says)
			}
			if row.name == "missing" {
				if _, err := os.Stat(kek); err == nil {
					t.Error("another key was made")
				}
			}
			os.RemoveAll(kek)
			if err := os.WriteFile(kek, key, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	w.Server.Start()
	n.Connected()
}

func TestAFullDiskStopsIssuingAndNothingElse(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	s := w.NewServer("cp")
	mountTmpfs(t, s.DataDir, "256m")
	w.Server = s
	s.Start()
	n := w.Join("n1")
	w.Apply(world.Identity("first", "n1", "unix:path:"+w.As("first")))
	watcher := w.Run("first", []string{w.As("first"), "watch", n.Socket})
	watcher.Says("svid " + world.ID("first"))
	filler := filepath.Join(s.DataDir, "filler")
	fill(t, filler)
	// The store preallocates; what it holds in reserve is used up first.
	var refusal error
	for i := 0; i < 400 && refusal == nil; i++ {
		name := fmt.Sprintf("e%d", i)
		refusal = w.TryApply(world.Identity(name, "n1", "unix:uid:4000000") + strings.Repeat("# padding\n", 200))
		fill(t, filler)
	}
	if refusal == nil {
		t.Fatal("a full disk refused nothing")
	}
	t.Logf("refused with: %v", refusal)
	if text := refusal.Error(); !strings.Contains(text, "space") && !strings.Contains(text, "full") {
		t.Errorf("the refusal does not say that the disk is full: %s", text)
	}
	if s.Ended() {
		t.Fatalf("the control plane ended: %s", s.Tail(5))
	}
	w.JSON(nil, "get", "workloadidentities") // reads go on
	w.JSON(nil, "cert", "list")
	again := w.Run("again", []string{w.As("first"), "watch", n.Socket})
	again.Says("svid " + world.ID("first"))
	os.Remove(filler)
	world.Until(t, world.Patience, "with space again resources are taken", func() error {
		if s.Ended() {
			t.Fatalf("the control plane ended: %s", s.Tail(5))
		}
		return w.TryApply(world.Identity("second", "n1", "unix:path:"+w.As("second")))
	})
	second := w.Run("second", []string{w.As("second"), "watch", n.Socket})
	second.Says("svid " + world.ID("second"))
}

// fill writes until nothing more fits.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return // not even a name fits
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 4 {
		block := make([]byte, size)
		for range 1 << 10 {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
}

func mountTmpfs(t testing.TB, dir, size string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,size="+size); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
