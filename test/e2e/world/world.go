// Package world is the harness of the end-to-end tests: it builds the two
// binaries once, runs them as real processes on loopback addresses that no
// other world has, waits on conditions and never on luck, and leaves no
// process, no mount and no network namespace behind. It is imported by tests
// only.
package world

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/envoytest"
)

// TrustDomain of every world.
const TrustDomain = "e2e.legation.test"

// Patience bounds every wait that a test does not bound itself.
const Patience = 30 * time.Second

// World is one control plane and what joined it. All of it ends with the test.
type World struct {
	testing.TB
	// Dir is private, removed with the test, and short enough for sockets.
	Dir string
	// Server is the control plane.
	Server *Server

	envoy string
	ip    string // 127.x.y: the world's own loopback network
	next  int    // last octet given out
	mu    sync.Mutex
	procs []*Process
}

var worlds atomic.Int32

// New makes an empty world: nothing runs. Tests are for root: they attest,
// make network namespaces and mount file systems.
func New(t testing.TB) *World {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it runs programs as other users, in network namespaces and on small file systems")
	}
	dir, err := os.MkdirTemp("/tmp", "lge2e")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // programs of other users find their sockets here
		t.Fatal(err)
	}
	n := os.Getpid()*16 + int(worlds.Add(1))
	w := &World{TB: t, Dir: dir, envoy: envoytest.Binary(t), ip: fmt.Sprintf("127.%d.%d", 16+n/250%200, n%250)}
	t.Cleanup(w.end)
	return w
}

// Start makes a world whose control plane serves.
func Start(t testing.TB, flags ...string) *World {
	t.Helper()
	w := New(t)
	w.Server = w.NewServer("cp", flags...)
	w.Server.Start()
	return w
}

// IP is an address of this world's own loopback network.
func (w *World) IP() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	return w.ip + "." + strconv.Itoa(w.next)
}

// Path of a file in the world's folder.
func (w *World) Path(elem ...string) string {
	return filepath.Join(append([]string{w.Dir}, elem...)...)
}

// Write makes a file in the world's folder.
func (w *World) Write(name, content string, mode os.FileMode) string {
	w.Helper()
	path := w.Path(name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		w.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		w.Fatal(err)
	}
	return path
}

// end stops what runs, shows the logs of a failed test, and checks that
// nothing of this world is left.
func (w *World) end() {
	w.mu.Lock()
	procs := append([]*Process(nil), w.procs...)
	w.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop()
	}
	for _, p := range procs {
		p.sound()
	}
	for _, p := range procs {
		if w.Failed() {
			w.Logf("--- last lines of %s\n%s", p.Name, p.Tail(25))
		}
	}
	var left []string
	Until(w, 10*time.Second, "every process of this world ends", func() error {
		if left = w.left(); len(left) > 0 {
			return fmt.Errorf("still there:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
	if os.Getenv("LEGATION_E2E_KEEP") == "" {
		os.RemoveAll(w.Dir)
	}
}

// left lists processes whose command line names the world's folder.
func (w *World) left() []string {
	var list []string
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		raw, err := os.ReadFile(path)
		if err == nil && bytes.Contains(raw, []byte(w.Dir+"/")) {
			list = append(list, path+" "+strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	return list
}

// Result of a command that ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs bin/legation against this world's control plane.
func (w *World) CLI(args ...string) Result {
	w.Helper()
	return w.Command(append([]string{Tool(w, "legation"), "--server", "unix://" + w.Server.Admin}, args...)...)
}

// Command runs argv to its end, which comes within Patience.
func (w *World) Command(argv ...string) Result {
	w.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = environment(w.envoy)
	timer := time.AfterFunc(2*Patience, func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	defer timer.Stop()
	err := cmd.Run()
	if cmd.ProcessState == nil {
		w.Fatalf("%s: %v", argv[0], err)
	}
	return Result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// JSON runs the CLI with -o json, which has to succeed, and decodes its answer.
func (w *World) JSON(into any, args ...string) {
	w.Helper()
	if err := w.TryJSON(into, args...); err != nil {
		w.Fatal(err)
	}
}

// TryJSON is JSON for an answer that may be an error.
func (w *World) TryJSON(into any, args ...string) error {
	w.Helper()
	r := w.CLI(append([]string{"-o", "json"}, args...)...)
	if r.Code != 0 {
		return fmt.Errorf("legation %s: exit code %d: %s%s", strings.Join(args, " "), r.Code, r.Stderr, r.Stdout)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal([]byte(r.Stdout), into); err != nil {
		return fmt.Errorf("legation %s answered %q: %w", strings.Join(args, " "), r.Stdout, err)
	}
	return nil
}

// Apply declares resources, which has to succeed.
func (w *World) Apply(yaml string) {
	w.Helper()
	if err := w.TryApply(yaml); err != nil {
		w.Fatal(err)
	}
}

// TryApply declares resources; nil means acknowledged.
func (w *World) TryApply(yaml string) error {
	w.Helper()
	f, err := os.CreateTemp(w.Dir, "apply-*.yaml")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(yaml)
	f.Close()
	if err != nil {
		return err
	}
	return w.TryJSON(nil, "apply", "-f", f.Name())
}

// ID of a service in namespace default.
func ID(name string) string { return "spiffe://" + TrustDomain + "/ns/default/sa/" + name }

// Identity declares a workload identity, as YAML.
func Identity(name, node string, selectors ...string) string {
	return IdentityTTL(name, node, "1h", selectors...)
}

// IdentityTTL is Identity with a lifetime.
func IdentityTTL(name, node, ttl string, selectors ...string) string {
	return fmt.Sprintf(`apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: %s, namespace: default}
spec: {node: %s, ttl: %s, selectors: [%s]}
---
`, name, node, ttl, `"`+strings.Join(selectors, `", "`)+`"`)
}

// Service declares that name:8080 is served at host:port by an identity.
func Service(name, host string, port int, identity string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: default}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 8080, targetPort: %[3]d}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[1]s, namespace: default}
spec:
  address: "%[2]s"
  labels: {app: %[1]s}
  ports: {http: %[3]d}
  serviceAccount: %[4]s
---
`, name, host, port, identity)
}

// Until polls a condition until it holds; the test fails with the last error
// when time is up.
func Until(t testing.TB, limit time.Duration, what string, ok func() error) {
	t.Helper()
	if err := TryUntil(limit, ok); err != nil {
		t.Fatalf("%s: not within %s: %v", what, limit, err)
	}
}

// TryUntil polls a condition and returns the last error when time is up.
func TryUntil(limit time.Duration, ok func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}
