package seeing

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/internal/freeport"
	"github.com/legation-io/legation/test/e2e/world"
	"github.com/legation-io/legation/test/stand"
)

// says waits until a command's answer, or its refusal, has all the words.
func says(t *testing.T, command func(...string) (string, error), args []string, words ...string) {
	t.Helper()
	stand.Until(t, fmt.Sprintf("legation %s says %q", strings.Join(args, " "), words), func() error {
		out, err := command(args...)
		text := fmt.Sprint(out, err)
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("no %q in:\n%s", w, text)
			}
		}
		return nil
	})
}

func config(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWhatIsBrokenIsNamedWithWhatToDo(t *testing.T) {
	s := stand.New(t, "--config", config(t, "lifetimes: {issuing: 240h, root: 480h, maxX509SVID: 24h}\n"))
	one := s.Agent("node-1")
	two := s.Agent("node-2", "--config", config(t, "maxRevocationAge: 2s\n"))
	s.Apply(entry("sleeper", "node-1", "unix:path:/usr/bin/sleep") + entry("tail", "node-2", "unix:path:/usr/bin/tail"))
	tail := stand.Start(t, "tail", "tail", "-f", "/dev/null")
	status, node := []string{"status"}, []string{"status", "--node"}
	why := []string{"why", "--pid", fmt.Sprint(tail.PID)}

	t.Run("a CA that ends soon", func(t *testing.T) {
		says(t, s.Legation, status, "the issuing CA of authority default ends in 9 days", "upgrade to one that rotates", "the root of authority default ends in")
	})
	t.Run("an entry for another node", func(t *testing.T) {
		says(t, one.Legation, why, fmt.Sprintf("Process %d has no identity", tail.PID), "default/tail", "it is parented to node node-2, not node-1", `set spec.node to "node-1" or "*"`)
		says(t, two.Legation, why, fmt.Sprintf("Process %d matches entry default/tail", tail.PID), "nobody has asked for it yet")
	})
	t.Run("an identity that is revoked", func(t *testing.T) {
		const id = "spiffe://example.org/ns/default/sa/tail"
		s.Must("revoke", id)
		says(t, two.Legation, why, fmt.Sprintf("Process %d matches entry default/tail", tail.PID), "it is revoked and gets none until somebody lifts that: legation lift "+id)
		s.Must("lift", id)
		says(t, two.Legation, why, "nobody has asked for it yet")
	})
	t.Run("an Envoy that refuses its configuration", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		run := func(name, port string) *stand.Process {
			return stand.Start(t, name, filepath.Join(s.Bin, "legation-agent"), "run", "--socket", one.Socket, "--envoy", envoytest.Binary(t),
				"--inbound", port+"=127.0.0.1:9", "--", "sleep", "600")
		}
		p := run("taken", taken.Addr().String())
		select {
		case <-p.Done():
		case <-time.After(stand.Patience):
			t.Fatal("the program's start was not given up")
		}
		if !strings.Contains(p.Log(), taken.Addr().String()+" is taken by another program") {
			t.Errorf("run does not say why it gave up:\n%s", p.Log())
		}

		// Whoever takes the port while Envoy is down has it, and that is told.
		port, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		p = run("run", port)
		p.Logged("program started")
		stand.Until(t, "the port is taken from Envoy", func() error {
			for _, pid := range world.Children(p.PID) {
				if strings.HasSuffix(world.Exe(pid), "/envoy") {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			l, err := net.Listen("tcp", port)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		says(t, one.Legation, node, "refused inbound|"+port+" and keeps what it had", "Address already in use", "something else listens there: choose another --inbound")
		says(t, s.Legation, status, "on node-1 refused inbound|"+port, "on the node, legation status --node says what to do")
		p.Stop()
	})
	t.Run("an agent that is away", func(t *testing.T) {
		two.Process.Stop()
		says(t, s.Legation, status, "node node-2 is away; it serves what it has until that expires. On the node: legation status --node")
		says(t, two.Legation, node, "nothing listens at "+two.AdminSocket, "try: start it")
		two.Start()
	})
	t.Run("an agent that was killed", func(t *testing.T) {
		two.Process.Kill()
		says(t, two.Legation, node, "nothing listens at "+two.AdminSocket+" any more: what did was stopped or killed", "try: start it again")
		two.Start()
	})
	t.Run("a control plane that is away, and a CRL that nobody confirms", func(t *testing.T) {
		s.Process.Kill()
		says(t, s.Legation, status, "nothing listens at "+s.Admin+" any more")
		says(t, two.Legation, node, "no control plane answers", "what is held is served until it expires. Check that "+s.Listen+" can be reached",
			"more than maxRevocationAge (2s): a revocation may not have arrived; it goes away once the control plane answers again")
		says(t, one.Legation, why, "has no identity", "The control plane does not answer, so only the entries of this node were looked at")
		if code, text, err := get(two.Metrics, "/readyz"); err != nil || code != http.StatusOK {
			t.Errorf("an agent that can serve from its cache is not ready: %d %s %v", code, text, err)
		}
	})
	t.Run("a machine whose clock is not synchronised, or is", func(t *testing.T) {
		says(t, two.Legation, []string{"check"}, "clock", time.Now().UTC().Format("2006-01-02"))
	})
}

func TestReadyMeansThatItServes(t *testing.T) {
	s := stand.New(t)
	stand.Until(t, "the control plane is ready", ready(s.Metrics, http.StatusOK, "ok"))

	a := s.Agent("node-1")
	stand.Until(t, "the agent is ready", ready(a.Metrics, http.StatusOK, "ok"))
	for _, path := range []string{"/livez", "/healthz", "/live"} {
		if code, _, err := get(a.Metrics, path); err != nil || code != http.StatusOK {
			t.Errorf("%s answers %d, %v", path, code, err)
		}
	}
	s.Process.Signal(syscall.SIGSTOP)
	defer s.Process.Signal(syscall.SIGCONT)
	a.Process.Kill()
	views, err := filepath.Glob(filepath.Join(s.Dir, "node-1", "cache", "view*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views { // what it knew; its identity stays
		if err := os.Remove(v); err != nil {
			t.Fatal(err)
		}
	}
	a.Process = stand.Start(t, "agent without a view", append([]string{filepath.Join(s.Bin, "legation-agent")}, a.Args...)...)
	stand.Until(t, "the agent lives and is not ready, and says why", ready(a.Metrics, http.StatusServiceUnavailable, "nothing received from the control plane yet"))
	if code, _, err := get(a.Metrics, "/livez"); err != nil || code != http.StatusOK {
		t.Errorf("/livez answers %d, %v", code, err)
	}
	s.Process.Signal(syscall.SIGCONT)
	stand.Until(t, "the agent is ready once it has heard", ready(a.Metrics, http.StatusOK, "ok"))
}

func ready(addr string, want int, words string) func() error {
	return func() error {
		code, text, err := get(addr, "/readyz")
		if err == nil && (code != want || !strings.Contains(text, words)) {
			err = fmt.Errorf("%d %s", code, text)
		}
		return err
	}
}
