package durable

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwned(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make folders of others")
	}
	const other = 65534
	ours, theirs := t.TempDir(), t.TempDir()
	if err := os.Chown(theirs, other, other); err != nil {
		t.Fatal(err)
	}
	link := func(target string, owner int) string {
		path := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]bool{ours: true, theirs: false, link(ours, 0): true, link(ours, other): false, link(theirs, 0): false, filepath.Join(ours, "none"): false} {
		if err := Owned(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, err := os.ReadDir(theirs); err != nil || len(left) != 0 {
		t.Errorf("left in it: %v, %v", left, err)
	}

	// As on a file system that takes us for another.
	if err := os.Chmod(filepath.Dir(theirs), 0o711); err != nil {
		t.Fatal(err)
	}
	owned := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with us
		err := unix.Setfsuid(other)
		if err == nil {
			err = Owned(theirs)
		}
		owned <- err
	}()
	if err := <-owned; err != nil {
		t.Errorf("what we make there is the other's, too: %v", err)
	}
}
