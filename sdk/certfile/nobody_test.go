//go:build linux

package certfile

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// asNobody runs f with the file system rights of nobody.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	unix.Setfsuid(nobody)
	defer unix.Setfsuid(0)
	if got, _ := unix.SetfsuidRetUid(-1); got != nobody {
		t.Fatalf("the rights are those of uid %d", got)
	}
	f()
}

func TestPermissions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test must run as root, to become another user for a moment")
	}
	f, first := newFolder(t, nil)
	// Root may read everything, so that a reload is made as nobody.
	asNobody(t, func() {
		if err := f.source.Reload(); err == nil || !strings.Contains(err.Error(), "may not be read") {
			t.Errorf("%v", err)
		}
	})
	if got, err := f.source.GetCertificate(nil); err != nil || !got.Leaf.Equal(first.Leaf) {
		t.Errorf("the old one is gone: %v", err)
	}
	// A change of mode is an event.
	try(t, os.Chmod(f.path("tls.key"), 0o644))
	f.until("the mode is warned of", func() bool { return strings.Contains(f.log.String(), "mode=0644") })
	f.serves(first)
	try(t, f.source.Reload())
	if n := strings.Count(f.log.String(), "everybody on this machine may read the private key"); n != 1 {
		t.Errorf("warned %d times", n)
	}
}

// TestWithoutInotify runs itself in a user namespace that may have no inotify
// instance, which is what an exhausted limit looks like.
func TestWithoutInotify(t *testing.T) {
	const child = "LEGATION_TEST_WITHOUT_INOTIFY"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWithoutInotify$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "--- PASS: TestWithoutInotify") {
			t.Fatalf("%v\n%s", err, out.String())
		}
		return
	}
	const limit = "/proc/sys/user/max_inotify_instances"
	try(t, os.WriteFile(limit, []byte("0"), 0o600))
	f := &folder{t: t, domain: pkitest.New(t, "example.org", nil), dir: t.TempDir()}
	f.put(f.issue())
	f.start(func(c *Config) { c.Poll = 50 * time.Millisecond })
	f.until("it says that it cannot watch", func() bool { return f.source.Status().WatchError != nil })
	if s := f.source.Status(); s.Watching || !strings.Contains(s.WatchError.Error(), "max_user_instances") {
		t.Errorf("%+v", s)
	}
	next := f.issue()
	f.put(next)
	f.serves(next)
	if n := strings.Count(f.log.String(), "cannot be watched"); n != 1 {
		t.Errorf("said %d times:\n%s", n, f.log.String())
	}
	// And back.
	try(t, os.WriteFile(limit, []byte("10"), 0o600))
	f.until("it watches", func() bool { return f.source.Status().Watching })
}
