//go:build unix

package acmecert

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/acmecert/internal/sealing"
	"github.com/legation-io/legation/sdk/acmecert/internal/storagetest"
)

var sealingKey = []byte("0123456789abcdef0123456789abcdef")

func openFolder(t testing.TB, path string) *Folder {
	t.Helper()
	f, err := OpenFolder(FolderConfig{Path: path, Key: sealingKey})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMemoryIsAStorage(t *testing.T) { storagetest.Run(t, &Memory{}) }

func TestAFolderIsAStorage(t *testing.T) {
	storagetest.Run(t, openFolder(t, filepath.Join(t.TempDir(), "acme")))
}

// No other test of this package may run beside this one: a umask is the process's.
func TestA04AFolderIsPrivateUnderAnyUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	root := filepath.Join(t.TempDir(), "acme")
	f := openFolder(t, root)
	secret := []byte("-----BEGIN EC PRIVATE KEY-----")
	for _, key := range []string{"certificates/ca/x.test/x.test.pair", "acme/account.json"} {
		if err := f.Store(t.Context(), key, secret); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Lock(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	defer f.Unlock(t.Context(), "n")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		if !entry.IsDir() {
			content, err := os.ReadFile(path)
			if err != nil || bytes.Contains(content, secret[:10]) {
				t.Errorf("%s holds a key in clear (%v)", path, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAFolderIsRefused(t *testing.T) {
	t.Run("when others may enter it", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFolder(FolderConfig{Path: dir, Key: sealingKey}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
			t.Error(err)
		}
	})
	t.Run("when it is another user's", func(t *testing.T) {
		dir := t.TempDir()
		if os.Getuid() != 0 {
			t.Skip("only root can be given a folder of another user that it may enter")
		}
		if err := os.Chown(dir, 65534, -1); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFolder(FolderConfig{Path: dir, Key: sealingKey}); err == nil || !strings.Contains(err.Error(), "65534") {
			t.Error(err)
		}
	})
	t.Run("when it is a link to elsewhere", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "l")
		if err := os.Symlink("/tmp", link); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFolder(FolderConfig{Path: link, Key: sealingKey}); err == nil {
			t.Error("it was taken")
		}
	})
	for name, c := range map[string]FolderConfig{"without a key": {Path: "x"}, "with two": {Path: "x", Key: sealingKey, KeyFile: "y"}, "without a path": {Key: sealingKey}} {
		t.Run(name, func(t *testing.T) {
			if _, err := OpenFolder(c); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestAFileThatWasTamperedWithIsRefusedAndNeverOverwritten(t *testing.T) {
	root := filepath.Join(t.TempDir(), "acme")
	f := openFolder(t, root)
	for _, key := range []string{"a", "b"} {
		if err := f.Store(t.Context(), key, []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(root, values, from+fileSuffix), filepath.Join(root, values, to+fileSuffix)); err != nil {
			t.Fatal(err)
		}
	}
	move("a", "b")
	if _, err := f.Load(t.Context(), "b"); !errors.Is(err, sealing.ErrRefused) || errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if !newPairs(f).Exists(t.Context(), "b") {
		t.Error("what cannot be opened counts as missing")
	}
}

func TestNamesThatLeadOutOfTheFolderAreRefused(t *testing.T) {
	f := openFolder(t, filepath.Join(t.TempDir(), "acme"))
	for _, key := range []string{"", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\x00b", "a~", ".new-1/..", strings.Repeat("a", 513)} {
		if err := f.Store(t.Context(), key, nil); err == nil {
			t.Errorf("%q was stored", key)
		}
		if _, err := f.Load(t.Context(), key); err == nil {
			t.Errorf("%q was loaded", key)
		}
		if err := f.Delete(t.Context(), key); err == nil {
			t.Errorf("%q was deleted", key)
		}
	}
}

func TestWhatACrashLeftHalfWrittenIsNotAValue(t *testing.T) {
	root := filepath.Join(t.TempDir(), "acme")
	f := openFolder(t, root)
	if err := f.Store(t.Context(), "a/b", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, values, "a", ".new-0011"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := f.List(t.Context(), "a", true); err != nil || len(got) != 1 {
		t.Error(got, err)
	}
	half := filepath.Join(root, values, "a", ".new-0011")
	openFolder(t, root)
	if _, err := os.Lstat(half); err != nil {
		t.Error("what another process may be writing is removed:", err)
	}
	if err := os.Chtimes(half, time.Time{}, time.Now().Add(-2*abandoned)); err != nil {
		t.Fatal(err)
	}
	openFolder(t, root)
	if _, err := os.Lstat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it lies there for ever:", err)
	}
	if got, err := f.Load(t.Context(), "a/b"); err != nil || string(got) != "v" {
		t.Error(string(got), err)
	}
}

// TestHoldALock is the child of the next test.
func TestHoldALock(t *testing.T) {
	root := os.Getenv("ACMECERT_HOLD_LOCK_IN")
	if root == "" {
		return // only as a child
	}
	if err := openFolder(t, root).Lock(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("held\n")
	time.Sleep(time.Minute)
}

func TestALockEndsWithAKilledProcess(t *testing.T) {
	root := filepath.Join(t.TempDir(), "acme")
	f := openFolder(t, root)
	child := exec.Command(os.Args[0], "-test.run=^TestHoldALock$")
	child.Env = append(os.Environ(), "ACMECERT_HOLD_LOCK_IN="+root)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	line := make([]byte, 5)
	if _, err := out.Read(line); err != nil || string(line) != "held\n" {
		t.Fatal(string(line), err)
	}
	locked := make(chan error, 1)
	go func() { locked <- f.Lock(t.Context(), "n") }()
	select {
	case err := <-locked:
		t.Fatal("two processes hold the lock", err)
	case <-time.After(3 * lockPoll):
	}
	child.Process.Kill()
	select {
	case err := <-locked:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the lock of a killed process stays")
	}
	if err := f.Unlock(t.Context(), "n"); err != nil {
		t.Error(err)
	}
}
