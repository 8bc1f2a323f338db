package workload

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// TestA19AReusedPIDInheritsNothing runs itself as the first process of a pid
// namespace, where nobody else takes pids, so that a caller's pid can be given
// to a victim on purpose.
func TestA19AReusedPIDInheritsNothing(t *testing.T) {
	if os.Getenv("WORKLOAD_PIDNS") == "" {
		if os.Geteuid() != 0 {
			t.Fatal("needs root, for a pid namespace")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestA19", "-test.v")
		cmd.Env = append(os.Environ(), "WORKLOAD_PIDNS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	a := running(t)

	t.Run("before the connection is attested", func(t *testing.T) {
		conn, accepted, pid := connectAndDie(t)
		reuse(t, pid)
		if c, err := a.FromConn(conn); !fault.Is(err, fault.Denied) {
			sel, _ := c.Selectors(t.Context())
			t.Errorf("got %q of the process that has the pid now, %v", sel, err)
		}
		// The same on a kernel without SO_PEERPIDFD.
		if fd, err := openPID(pid, accepted); !fault.Is(err, fault.Denied) {
			syscall.Close(fd)
			t.Errorf("fallback: got %v", err)
		}
	})
	t.Run("between attestation and the next look", func(t *testing.T) {
		p := start(t, "wait")
		c := p.mustCaller(a)
		if _, err := c.Selectors(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.kill()
		reuse(t, p.cmd.Process.Pid)
		if sel, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("got %q, %v", sel, err)
		}
		if err := c.Recheck(); !fault.Is(err, fault.Denied) {
			t.Errorf("Recheck: %v", err)
		}
		<-c.Done()
	})
	t.Run("before the selectors are read", func(t *testing.T) {
		p := start(t, "wait")
		c := p.mustCaller(a)
		p.kill()
		reuse(t, p.cmd.Process.Pid)
		if sel, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("got %q, %v", sel, err)
		}
	})
}

// connectAndDie returns the server's end of a process that is gone.
func connectAndDie(t *testing.T) (*net.UnixConn, time.Time, int) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "WORKLOAD_HELPER=connect-and-die", "WORKLOAD_SOCKET="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn), time.Now(), cmd.Process.Pid
}

// reuse starts a process under a pid that is free.
func reuse(t *testing.T, pid int) {
	t.Helper()
	time.Sleep(25 * time.Millisecond) // start times are told in ticks of 10 ms
	for range 200 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		victim := exec.Command("sleep", "60")
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		kill := func() { victim.Process.Kill(); victim.Wait() }
		if victim.Process.Pid == pid {
			t.Cleanup(kill)
			return
		}
		kill() // a thread of the test took it
	}
	t.Fatalf("pid %d was not reused in 200 attempts", pid)
}
