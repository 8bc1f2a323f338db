// Package stand sets up the real thing for tests: the two binaries built from
// this checkout, a control plane and agents on this machine, with everything
// they write in a folder that is removed with the test. Only what a test
// started is ended, by its process.
package stand

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/freeport"
)

// Patience bounds every wait.
const Patience = 30 * time.Second

// TrustDomain of every stand, as in the examples.
const TrustDomain = "example.org"

// Root is the checkout.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source of this package is not known")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

var built = sync.OnceValues(func() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	dir, err := os.MkdirTemp("", "legation-bin-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir, "./cmd/legation", "./cmd/legation-agent")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	return dir, os.Chmod(dir, 0o755)
})

// Main runs a package's tests and removes the binaries afterwards.
func Main(m *testing.M) {
	code := m.Run()
	if dir, _ := built(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// Stand is a running control plane.
type Stand struct {
	Dir     string // readable by every user; for sockets and files
	Bin     string
	Listen  string // HOST:PORT for agents
	Metrics string // HOST:PORT
	Admin   string // path of the admin socket
	Process *Process
	Args    []string // what the control plane was started with

	t testing.TB
}

// New starts a control plane. extra are further flags of "legation server".
func New(t testing.TB, extra ...string) *Stand {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "stand")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Stand{Dir: dir, Bin: bin, Listen: FreeAddr(t), Metrics: FreeAddr(t), Admin: filepath.Join(dir, "admin.sock"), t: t}
	s.Args = append([]string{"server", "--trust-domain", TrustDomain, "--data-dir", filepath.Join(dir, "control-plane"),
		"--listen", s.Listen, "--metrics", s.Metrics, "--admin-socket", s.Admin}, extra...)
	s.Start()
	return s
}

// Start starts the control plane again after Process was stopped or killed.
func (s *Stand) Start() {
	s.t.Helper()
	s.Process = Start(s.t, "control plane", append([]string{filepath.Join(s.Bin, "legation")}, s.Args...)...)
	s.Process.Until("the control plane answers", func() error {
		_, err := s.Legation("status")
		if err != nil && strings.Contains(err.Error(), "listed above") {
			return nil // it answers, with problems
		}
		return err
	})
}

// Legation runs a command against the control plane and returns its answer.
func (s *Stand) Legation(args ...string) (string, error) {
	return output(filepath.Join(s.Bin, "legation"), append([]string{"--server", "unix://" + s.Admin}, args...)...)
}

// Must is Legation that ends the test on an error.
func (s *Stand) Must(args ...string) string {
	s.t.Helper()
	out, err := s.Legation(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// Apply declares resources.
func (s *Stand) Apply(yaml string) {
	s.t.Helper()
	file := filepath.Join(s.Dir, "apply.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.Must("apply", "-f", file)
}

// Agent is a running agent.
type Agent struct {
	Node, Socket, AdminSocket, Metrics string
	Process                            *Process
	Args                               []string

	s *Stand
}

// Agent starts the agent of a node and waits until it is linked. extra are
// further flags of "legation-agent serve".
func (s *Stand) Agent(node string, extra ...string) *Agent {
	s.t.Helper()
	var token struct{ Token, BundleHash string }
	if err := json.Unmarshal([]byte(s.Must("token", "create", "--node", node, "-o", "json")), &token); err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.Dir, node+".token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		s.t.Fatal(err)
	}
	a := &Agent{Node: node, Socket: filepath.Join(s.Dir, node+".sock"), AdminSocket: filepath.Join(s.Dir, node+"-admin.sock"), Metrics: FreeAddr(s.t), s: s}
	a.Args = append([]string{"serve", "--trust-domain", TrustDomain, "--server", s.Listen,
		"--data-dir", filepath.Join(s.Dir, node), "--socket", a.Socket, "--admin-socket", a.AdminSocket, "--metrics", a.Metrics,
		"--join-token-file", file, "--bundle-hash", token.BundleHash}, extra...)
	a.Start()
	return a
}

// Start starts the agent, again after Process was stopped or killed.
func (a *Agent) Start() {
	a.s.t.Helper()
	a.Process = Start(a.s.t, "agent "+a.Node, append([]string{filepath.Join(a.s.Bin, "legation-agent")}, a.Args...)...)
	a.Process.Until("agent "+a.Node+" is linked", func() error {
		out, err := a.Legation("status", "--node", "-o", "json")
		if err != nil {
			return err
		}
		var st struct {
			Connected bool
			LastError string
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		if !st.Connected {
			return errors.New("not connected: " + st.LastError)
		}
		return nil
	})
}

// Legation runs a command against this agent and returns its answer.
func (a *Agent) Legation(args ...string) (string, error) {
	return output(filepath.Join(a.s.Bin, "legation"), append([]string{"--agent", "unix://" + a.AdminSocket}, args...)...)
}

// output returns stdout; the error carries stdout too, because some commands
// answer and then fail.
func output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// FreeAddr is a loopback HOST:PORT at which nobody listens.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// Until polls until f returns nil, and ends the test when that does not
// happen.
func Until(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
