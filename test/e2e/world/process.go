package world

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one that a test started; it ends with its world.
type Process struct {
	Name string
	PID  int
	Log  string // path of what it wrote

	w    *World
	cmd  *exec.Cmd
	done chan struct{}
}

// Run starts argv with its output, appended, in NAME.log.
func (w *World) Run(name string, argv []string, env ...string) *Process {
	w.Helper()
	p, err := w.TryRun(name, argv, env...)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// TryRun is Run for other goroutines than the test's own.
func (w *World) TryRun(name string, argv []string, env ...string) (*Process, error) {
	log := w.Path(name + ".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = environment(w.envoy, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, PID: cmd.Process.Pid, Log: log, w: w, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process
		_ = cmd.Wait()
		close(p.done)
	}()
	w.mu.Lock()
	w.procs = append(w.procs, p)
	w.mu.Unlock()
	return p, nil
}

// Signal sends one.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Kill is kill -9, and waits until the process is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks it to end and kills it when it does not within ten seconds.
func (p *Process) Stop() {
	if p.Ended() {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.w.Errorf("%s (pid %d) did not end within 10 s of SIGTERM", p.Name, p.PID)
		p.Kill()
	}
}

// Ended reports whether it has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Exit waits until it ends by itself and returns its exit code, -1 for a
// signal.
func (p *Process) Exit(limit time.Duration) int {
	p.w.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.w.Fatalf("%s did not end within %s\n%s", p.Name, limit, p.Tail(15))
		return 0
	}
}

// Output is everything it wrote.
func (p *Process) Output() string {
	raw, _ := os.ReadFile(p.Log)
	return string(raw)
}

// sound fails the test when the process says that it is broken: a panic, or a
// race where the programs are built to find some.
func (p *Process) sound() {
	out := p.Output()
	for _, sign := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: ", "[recovered]"} {
		if i := strings.Index(out, sign); i >= 0 {
			p.w.Errorf("%s is broken:\n%s", p.Name, out[i:min(len(out), i+6000)])
			return
		}
	}
}

// Tail is its last n lines.
func (p *Process) Tail(n int) string {
	lines := strings.SplitAfter(p.Output(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// Says waits until its output contains a text.
func (p *Process) Says(text string) {
	p.w.Helper()
	Until(p.w, Patience, fmt.Sprintf("%s says %q", p.Name, text), func() error {
		if strings.Contains(p.Output(), text) {
			return nil
		}
		if p.Ended() {
			return fmt.Errorf("it ended with code %d\n%s", p.cmd.ProcessState.ExitCode(), p.Tail(10))
		}
		return errors.New(p.Tail(3))
	})
}

// Children are the pids whose parent is pid.
func Children(pid int) []int {
	var list []int
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		// pid (comm) state ppid: comm may contain spaces and parentheses.
		rest := string(raw)
		rest = rest[strings.LastIndexByte(rest, ')')+1:]
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if n, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// Exe is what a process executes, "" when it is gone.
func Exe(pid int) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return path
}
