package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/fault"
)

func TestA04ASocketHasItsModeUnderAnyUmask(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("the socket is still there: %v", err)
	}
}

func TestAServedSocketIsNotStolen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(path, 0o600); !fault.Is(err, fault.Conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
}

func TestASocketLeftBehindIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestAFileIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, 0o600); !fault.Is(err, fault.Conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if raw, _ := os.ReadFile(path); string(raw) != "x" {
		t.Fatal("the file was changed")
	}
}

// One that stops while the next starts does not take the next one's socket
// away.
func TestOnlyItsOwnSocketIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	old, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	// As the next finds it between the old one's close and its remove.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	next, err := Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the next one's socket is gone: %v", err)
	}
	conn.Close()
	if err := old.Close(); err == nil {
		t.Error("closed twice")
	}
}

func TestNothingIsLeftBesideASocket(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(filepath.Join(dir, "deep", "a.sock"), 0o666)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(filepath.Join(dir, "deep"))
	if err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	l.Close()
	if _, err := Listen(filepath.Join("/proc", "nothing", "a.sock"), 0o666); !fault.Is(err, fault.Invalid) {
		t.Errorf("a folder that cannot be made: %v", err)
	}
}
