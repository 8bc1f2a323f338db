package world

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var built struct {
	once sync.Once
	dir  string
	root string
	err  error
}

// Run runs a package's tests and removes what they built.
func Run(m *testing.M) int {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	return code
}

// Tool is the path of a binary of this build: legation, legation-agent, peer,
// attacker.
func Tool(t testing.TB, name string) string {
	t.Helper()
	built.once.Do(func() { built.err = build() })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// Root is the folder of the root module.
func Root(t testing.TB) string {
	Tool(t, "legation")
	return built.root
}

// build compiles the real programs, in test-long with the race detector, and
// those of the tests, once for all tests of this process.
func build() error {
	root, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(root, "cmd", "legation-agent")); missing == nil {
			break
		}
		if root == "/" {
			return fmt.Errorf("the root module was not found above the working directory")
		}
		root = filepath.Dir(root)
	}
	if err != nil {
		return err
	}
	built.root = root
	if built.dir, err = os.MkdirTemp("/tmp", "lgbin"); err != nil {
		return err
	}
	if err := os.Chmod(built.dir, 0o755); err != nil { // programs run as other users, too
		return err
	}
	args := []string{"build", "-trimpath", "-o", built.dir + "/"}
	if Race() {
		args = []string{"build", "-race", "-o", built.dir + "/"}
	}
	for _, c := range []struct {
		dir  string
		pkgs []string
	}{{root, []string{"./cmd/..."}}, {filepath.Join(root, "test"), []string{"./e2e/peer", "./e2e/attacker"}}} {
		cmd := exec.Command("go", append(args, c.pkgs...)...)
		cmd.Dir = c.dir
		if !Race() {
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s %s: %w\n%s", strings.Join(args, " "), strings.Join(c.pkgs, " "), err, out)
		}
	}
	return nil
}

// Long reports whether the long variants of tests run (make test-long).
func Long() bool { return os.Getenv("LEGATION_LONG") == "1" }

// Race reports whether the programs are built with the race detector, which
// takes minutes to compile and is left to make test-long.
func Race() bool { return Long() || os.Getenv("LEGATION_E2E_RACE") == "1" }

// As makes an executable of a name of its own out of the peer, so that
// attestation by path tells programs apart.
func (w *World) As(name string) string {
	w.Helper()
	path := w.Path("bin-" + name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.Link(Tool(w, "peer"), path); err != nil {
		raw, err := os.ReadFile(Tool(w, "peer"))
		if err == nil {
			err = os.WriteFile(path, raw, 0o755)
		}
		if err != nil {
			w.Fatal(err)
		}
	}
	return path
}

// environment of every process: no setting of whoever runs the tests.
func environment(envoy string, more ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LEGATION_") && !strings.HasPrefix(v, "SPIFFE_") {
			env = append(env, v)
		}
	}
	return append(append(env, "LEGATION_ENVOY="+envoy), more...)
}
