package stand

import (
	"bytes"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is one that a test started; it ends with the test.
type Process struct {
	Name string
	PID  int

	t    testing.TB
	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
}

// Start runs argv and keeps the end of what it writes.
func Start(t testing.TB, name string, argv ...string) *Process {
	t.Helper()
	p := &Process{Name: name, t: t, out: &tail{}, done: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() { // ends with the process
		runtime.LockOSThread() // Pdeathsig is about the thread that started the child
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p.PID = p.cmd.Process.Pid
	t.Cleanup(func() {
		begin := time.Now()
		p.Stop()
		if d := time.Since(begin); d > 3*time.Second {
			t.Logf("%s took %s to end", p.Name, d.Round(100*time.Millisecond))
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", p.Name, p.Log())
		}
	})
	return p
}

// Stop ends it by SIGTERM, or SIGKILL after a while.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

// Kill ends it by SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Log is the end of what it wrote.
func (p *Process) Log() string { return p.out.String() }

// Logged waits until it has written a line that has all the words.
func (p *Process) Logged(words ...string) {
	p.t.Helper()
	p.Until(fmt.Sprintf("%s writes %q", p.Name, words), func() error {
		for line := range strings.Lines(p.Log()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no such line")
	})
}

// Until is the package's Until that also ends when the process does.
func (p *Process) Until(what string, f func() error) {
	p.t.Helper()
	Until(p.t, what, func() error {
		select {
		case <-p.done:
			p.t.Fatalf("waiting until %s: %s ended (%s) and wrote:\n%s", what, p.Name, p.cmd.ProcessState, p.Log())
		default:
		}
		return f()
	})
}

// tail keeps the last MiB written.
type tail struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p)
	if extra := l.b.Len() - 1<<20; extra > 0 {
		l.b.Next(extra)
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
