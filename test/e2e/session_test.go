package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

// solo is a node with one identity for everything that runs as root in it.
func solo(t *testing.T) (*world.World, *world.Node) {
	t.Helper()
	w := world.Start(t)
	n := w.Join("n1")
	w.Apply(world.Identity("any", "n1", "unix:uid:0"))
	return w, n
}

func TestASessionPassesOnHowItsProgramEnded(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	none := w.Write("data", "not a program", 0o644)
	broken := w.Write("broken", "\x7fELF and nothing more", 0o755)
	script := w.Write("script", "#!/bin/sh\necho from the script: $1\nexit 23\n", 0o755)
	viaEnv := w.Write("via-env", "#!/usr/bin/env sh\nexit 24\n", 0o755)
	noInterpreter := w.Write("no-interpreter", "#!/no/such/shell\n", 0o755)
	for _, row := range []struct {
		name    string
		program []string
		code    int
		says    string
	}{
		{"the program's exit code is the session's", []string{w.As("any"), "exit", "42"}, 42, ""},
		{"zero is zero", []string{w.As("any"), "exit", "0"}, 0, ""},
		{"a script with #! runs by its interpreter", []string{script, "hello"}, 23, "from the script: hello"},
		{"a script with env runs by the interpreter that env would find", []string{viaEnv}, 24, ""},
		{"a program that does not exist is 127", []string{w.Path("nothing")}, 127, "no such file"},
		{"a program that may not be executed is 126", []string{none}, 126, "permission denied"},
		{"a program that the kernel refuses is 126", []string{broken}, 126, "exec format error"},
		{"an interpreter that does not exist is 127", []string{noInterpreter}, 127, "/no/such/shell"},
		{"a program that dies by a signal is 128 and the signal", []string{"/bin/sh", "-c", "kill -9 $$"}, 137, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := n.NewSession("s-"+strings.ReplaceAll(row.name[:12], " ", "-"), nil, []string{"--outbound", "nobody:8080"}, row.program...)
			os.Remove(s.LogPath())
			s.Launch()
			if code := s.Exit(world.Patience); code != row.code {
				t.Errorf("exit code %d, want %d: %s", code, row.code, s.Tail(4))
			}
			if out := s.Output(); !strings.Contains(out, row.says) {
				t.Errorf("it does not say %q: %s", row.says, out)
			}
		})
	}
}

// The README's phrase: without a port the program has its identity, and an
// Envoy that listens nowhere.
func TestAProgramThatAsksForNoPortStarts(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	s := n.Run("s", nil, nil, w.As("any"), "signals")
	s.Says("waiting")
	s.Says("the proxy listens nowhere")
	for _, at := range world.Listening(t, s.Envoy()) {
		if !strings.HasSuffix(at, "/admin.sock") {
			t.Errorf("its Envoy listens at %s", at)
		}
	}
	if !strings.Contains(s.Output(), world.ID("any")) {
		t.Errorf("it does not say who the program is: %s", s.Tail(5))
	}
	n.Stop()
	n.Start()
	world.Until(t, world.Patience, "the session is resumed", func() error {
		if s.Count("session resumed") == 0 {
			return errors.New(s.Tail(3))
		}
		return nil
	})
	s.Signal(syscall.SIGTERM)
	if code := s.Exit(world.Patience); code != 7 {
		t.Errorf("exit code %d, want the program's own 7", code)
	}
}

// A typo in a destination is seen before it is searched for: it is no mistake
// to begin before the Service is declared, so the program starts.
func TestADestinationThatNothingDeclaresIsNamed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	outbound := p.IP() + ":9001"
	s := p.node.Run("typo", nil, []string{"--outbound", "nosuch:8080=" + outbound, "--outbound", "bob:8080=" + p.IP() + ":9001"}, p.As("alice"), "signals")
	const reason = "no Service nosuch.default with port 8080 and endpoints is declared"
	out := s.Output()
	if at := strings.Index(out, reason); at < 0 || at > strings.Index(out, "program started") {
		t.Errorf("it is not warned before its program starts: %s", s.Tail(8))
	}
	if strings.Contains(out, "no Service bob") {
		t.Errorf("it is warned of what is declared: %s", s.Tail(8))
	}
	world.Until(t, world.Patience, "the failure has the same reason", func() error {
		if get(outbound, "bob") == nil {
			t.Fatal("nobody answers, and is heard")
		}
		var failures []struct{ Direction, Cause, Reason string }
		if err := p.node.JSON(&failures, "connections", "--failures"); err != nil {
			return err
		}
		for _, f := range failures {
			if f.Direction == "outbound" && f.Cause == "unreachable" && f.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("failures: %+v", failures)
	})
	host, _, _ := net.SplitHostPort(p.inbound)
	p.Apply(world.Service("nosuch", host, 15443, "bob"))
	world.Until(t, world.Patience, "it works once it is declared", func() error { return get(outbound, "bob") })
}

func TestASessionPassesOnSignals(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	s := n.Run("s", nil, []string{"--outbound", "nobody:8080"}, w.As("any"), "signals")
	s.Says("waiting")
	for sig, says := range map[syscall.Signal]string{syscall.SIGHUP: "hangup", syscall.SIGUSR1: "user defined signal 1", syscall.SIGINT: "interrupt"} {
		s.Signal(sig)
		s.Says("got " + says)
	}
	s.Signal(syscall.SIGTERM)
	if code := s.Exit(world.Patience); code != 7 {
		t.Fatalf("exit code %d, want the program's own 7", code)
	}
	s.Says("got terminated")
}

func TestADeadEnvoyIsRestartedAndTrafficResumes(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for range 3 {
		for _, s := range []*world.Session{p.alice, p.bob} {
			program, before := s.Program(), s.Envoy()
			if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
				t.Fatalf("kill Envoy %d: %v", before, err)
			}
			world.Until(t, world.Patience, "another Envoy runs", func() error {
				if pid := s.Envoy(); pid == 0 || pid == before {
					return fmt.Errorf("pid %d", pid)
				}
				return nil
			})
			p.flows()
			if s.Program() != program {
				t.Fatal("the program was disturbed")
			}
		}
	}
}

// A program must not outlive what guards it: kill -9 of the session ends it.
// Ten times: which thread executes a program is up to chance.
func TestAProgramDiesWithItsSession(t *testing.T) {
	t.Parallel()
	w, n := solo(t)
	for round := range 10 {
		s := n.Run(fmt.Sprintf("s%d", round), nil, []string{"--outbound", "nobody:8080"}, w.As("any"), "signals")
		program, envoy := s.Program(), s.Envoy()
		if program == 0 || envoy == 0 {
			t.Fatalf("program %d, Envoy %d", program, envoy)
		}
		s.Kill()
		world.Until(t, world.Patience, "program and Envoy are gone", func() error {
			for _, pid := range []int{program, envoy} {
				if syscall.Kill(pid, 0) == nil {
					return fmt.Errorf("pid %d (%s) lives", pid, world.Exe(pid))
				}
			}
			return nil
		})
	}
}

func TestAProgramWithoutAnEntryIsNotStarted(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	w.Apply(world.Identity("other", "n1", "unix:path:/bin/other"))
	mark := w.Path("it-ran")
	s := n.NewSession("s", nil, []string{"--ready-timeout", "4s"}, "/bin/sh", "-c", "touch "+mark)
	s.Launch()
	if code := s.Exit(world.Patience); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the program ran without an identity")
	}
	for _, says := range []string{"lacks unix:path:/bin/other", "unix:path:/usr/bin/dash"} {
		if !strings.Contains(s.Output(), says) {
			t.Errorf("it does not say %q: %s", says, s.Output())
		}
	}
}
