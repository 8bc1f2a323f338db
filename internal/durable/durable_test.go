package durable_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/durable"
)

// TestMain runs the tests again in a mount namespace of its own where a test
// needs a small disk.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DURABLE_SMALL_DISK"); dir != "" {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
			fmt.Println("mount a small disk:", err)
			os.Exit(1)
		}
		if err := onASmallDisk(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func withUmask(t *testing.T, mask int) {
	t.Helper()
	old := syscall.Umask(mask)
	t.Cleanup(func() { syscall.Umask(old) })
}

// TestA04ModesDoNotDependOnTheUmask belongs to attack A04.
func TestA04ModesDoNotDependOnTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o777 &^ 0o700} {
		t.Run(fmt.Sprintf("umask %03o", mask), func(t *testing.T) {
			root := t.TempDir()
			withUmask(t, mask)
			for _, mode := range []os.FileMode{0o700, 0o750, 0o755} {
				top := filepath.Join(root, fmt.Sprintf("%o", mode))
				if err := durable.OS.MkdirAll(filepath.Join(top, "b", "c"), mode); err != nil {
					t.Fatal(err)
				}
				for _, dir := range []string{top, filepath.Join(top, "b"), filepath.Join(top, "b", "c")} {
					wantMode(t, dir, mode)
				}
			}
			for _, mode := range []os.FileMode{0o600, 0o640, 0o644} {
				file := filepath.Join(root, fmt.Sprintf("f%o", mode))
				for range 2 { // made, then replaced
					if err := durable.OS.WriteFile(file, []byte("x"), mode); err != nil {
						t.Fatal(err)
					}
					wantMode(t, file, mode)
				}
			}
		})
	}
}

func wantMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != mode {
		t.Errorf("%s has mode %04o, want %04o", path, st.Mode().Perm(), mode)
	}
}

func TestExistingFoldersKeepTheirMode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := durable.OS.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantMode(t, dir, 0o711)
}

func TestAFileInPlaceOfAFolderIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.OS.MkdirAll(file, 0o700); err == nil {
		t.Error("a file was taken for a folder")
	}
	if err := durable.OS.MkdirAll(filepath.Join(file, "x"), 0o700); err == nil {
		t.Error("a folder was made under a file")
	}
}

func TestReadersSeeTheOldOrTheNewFileWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(i int) error {
		return durable.OS.WriteFile(path, []byte(strings.Repeat(fmt.Sprint(i%10), 10_000)), 0o600)
	}
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 30 {
			if err := write(i); err != nil {
				t.Errorf("write: %v", err)
			}
		}
	})
	for range 300 {
		got, err := durable.OS.ReadFile(path)
		if err != nil || len(got) != 10_000 || strings.Trim(string(got), string(got[:1])) != "" {
			t.Fatalf("read %d bytes, %v; want 10,000 of one kind", len(got), err)
		}
	}
	wg.Wait()
	wantNames(t, filepath.Dir(path), "f")
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

func TestRemovingWhatIsAbsentIsNoError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := durable.OS.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := durable.OS.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := durable.OS.ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
}

func TestSweepRemovesOnlyWhatAPowerCutLeft(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"f", ".f.tmp123", ".hidden", "x.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	wantNames(t, dir, ".hidden", "f", "x.tmp")
	if err := durable.Sweep(filepath.Join(dir, "absent")); err != nil {
		t.Errorf("sweep of a folder that is not there: %v", err)
	}
}

// TestAFullDiskLeavesTheOldFile mounts a small disk in a child's own mount
// namespace; without root in its own user namespace too.
func TestAFullDiskLeavesTheOldFile(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DURABLE_SMALL_DISK="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func onASmallDisk(dir string) error {
	path := filepath.Join(dir, "f")
	if err := durable.OS.WriteFile(path, []byte("old"), 0o600); err != nil {
		return err
	}
	if err := durable.OS.WriteFile(path, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("write to a full disk: %v, want ENOSPC", err)
	}
	if got, err := durable.OS.ReadFile(path); err != nil || string(got) != "old" {
		return fmt.Errorf("after the failed write: %q, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		return fmt.Errorf("the failed write left %v, %v", entries, err)
	}
	return durable.OS.WriteFile(path, []byte("new"), 0o600)
}
