package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/test/e2e/world"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal whose session leader a test starts.
type terminal struct {
	keys *os.File // what is typed
	line *os.File // the program's side

	mu  sync.Mutex // guards out
	out strings.Builder
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	raw, err := keys.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	number := 0
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	line, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{keys: keys, line: line}
	read := make(chan struct{})
	go func() { // ends when the terminal is closed
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			term.mu.Lock()
			term.out.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { keys.Close(); <-read })
	return term
}

// start makes argv the leader of the terminal's session.
func (term *terminal) start(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LEGATION_ENVOY="+envoytest.Binary(t), "PS1=> ")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.line, term.line, term.line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.line.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (term *terminal) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := term.keys.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) says(t *testing.T, what string) {
	t.Helper()
	world.Until(t, world.Patience, "the terminal shows "+what, func() error {
		if out := term.shown(); !strings.Contains(out, what) {
			return fmt.Errorf("so far %q", out)
		}
		return nil
	})
}

func (term *terminal) shown() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.out.String()
}

func TestAtATerminalKeysReachTheProgramOnce(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	term := newTerminal(t)
	cmd := term.start(t, world.Tool(w, "legation-agent"), "run", "--socket", n.Socket, "--outbound", "nobody:8080", "--", w.As("any"), "signals")
	term.says(t, "waiting")
	term.types(t, "\x03") // Ctrl-C
	term.says(t, "got interrupt")
	_ = cmd.Process.Signal(syscall.SIGUSR1) // the one who asks is told; what came before it has come
	term.says(t, "got user defined signal 1")
	if got := strings.Count(term.shown(), "got interrupt"); got != 1 {
		t.Errorf("one Ctrl-C came %d times", got)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d, want the program's own 7; it showed %s", code, term.shown())
	}
}

func TestASignalBeforeTheProgramRunsEndsTheSession(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1") // no entry matches: it waits
	s := n.NewSession("s", nil, []string{"--ready-timeout", "60s"}, w.As("any"), "signals")
	s.Launch()
	world.Until(t, world.Patience, "its process waits", func() error {
		if s.Program() == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	s.Signal(syscall.SIGTERM)
	if code := s.Exit(world.Patience); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d: %s", code, s.Tail(5))
	}
}

// descendant finds a process below another by the end of its executable.
func descendant(pid int, exe string) int {
	for _, child := range world.Children(pid) {
		if strings.HasSuffix(world.Exe(child), exe) {
			return child
		}
		if found := descendant(child, exe); found != 0 {
			return found
		}
	}
	return 0
}

// state of a process, as ps shows it.
func state(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "gone"
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	return fields[0]
}

func TestAShellStopsAndContinuesASession(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	term := newTerminal(t)
	shell := term.start(t, "/bin/bash", "--norc", "--noprofile", "-i")
	// In a pipeline, as with a pager.
	term.types(t, world.Tool(w, "legation-agent")+" run --socket "+n.Socket+" --outbound nobody:8080 -- "+w.As("any")+" signals | cat\n")
	term.says(t, "waiting")
	program, envoy := descendant(shell.Process.Pid, w.As("any")), descendant(shell.Process.Pid, "/envoy")
	if program == 0 || envoy == 0 {
		t.Fatalf("program %d, Envoy %d", program, envoy)
	}
	in := func(pid int, want ...string) {
		t.Helper()
		world.Until(t, world.Patience, fmt.Sprintf("process %d is %v", pid, want), func() error {
			for _, s := range want {
				if state(pid) == s {
					return nil
				}
			}
			return fmt.Errorf("it is %s; the terminal shows %q", state(pid), term.shown())
		})
	}
	term.types(t, "\x1a") // Ctrl-Z
	in(program, "T")
	term.says(t, "Stopped")
	in(envoy, "S", "R") // connections are not cut by a key
	term.types(t, "fg\n")
	in(program, "S", "R")
	parent := descendant(shell.Process.Pid, "/legation-agent")
	if parent == 0 {
		t.Fatal("the session's parent is gone")
	}
	if err := syscall.Kill(parent, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	term.says(t, "got user defined signal 1")
	if err := syscall.Kill(program, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	in(envoy, "gone")
	term.types(t, "echo shell $((40+2))\n") // and it has the terminal again
	term.says(t, "shell 42")
}
