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
	cmd := exec.Command(world.Tool(w, "legation-agent"), "run", "--socket", n.Socket, "--outbound", "nobody:8080", "--", w.As("any"), "signals")
	cmd.Env = append(os.Environ(), "LEGATION_ENVOY="+envoytest.Binary(t))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.line, term.line, term.line
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.line.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	term.says(t, "waiting")
	if _, err := term.keys.WriteString("\x03"); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	term.says(t, "got interrupt")
	_ = cmd.Process.Signal(syscall.SIGUSR1) // the one who asks is told; what came before it has come
	term.says(t, "got user defined signal 1")
	if got := strings.Count(term.shown(), "got interrupt"); got != 1 {
		t.Errorf("one Ctrl-C came %d times", got)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
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
