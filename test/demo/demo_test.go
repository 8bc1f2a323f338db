// Package demo runs the demo as its tests: with capture, and with explicit
// ports as a user without any privilege.
package demo

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody owns nothing and may do nothing.
const nobody = 65534

const example = "../../examples/feature-platform"

// place copies what the demo needs to where every user can read it.
func place(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run as root: the demo is run with capture, and as another user")
	}
	// Not t.TempDir: its parents are for their owner only.
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	envoy := os.Getenv("LEGATION_ENVOY")
	if envoy == "" {
		envoy = "../../tools/envoy/envoy"
	}
	if _, err := os.Stat(envoy); err != nil {
		t.Fatalf("%v; run: make envoy", err)
	}
	for _, argv := range [][]string{
		{"go", "build", "-C", "../..", "-o", dir + "/", "-tags", "grpcnotrace", "./cmd/legation", "./cmd/legation-agent",
			"./examples/feature-platform/demo", "./examples/feature-platform/featurestore", "./examples/feature-platform/retrieval"},
		{"cp", "-rL", example, dir + "/source"},
		{"cp", "-L", envoy, dir + "/envoy"},
		{"chown", "-R", "65534:65534", dir},
		{"chmod", "-R", "a+rX", dir},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	return dir
}

func run(t *testing.T, dir string, credential *syscall.Credential, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "demo"), append([]string{"--bin", dir, "--source", dir + "/source"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "LEGATION_ENVOY=" + dir + "/envoy"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it cleans up
	cmd.WaitDelay = 30 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "legation-demo-*")); len(left) > 0 {
		t.Errorf("it left %v behind", left)
	}
	t.Logf("%s", out)
}

func TestDemo(t *testing.T) {
	dir := place(t)
	t.Run("with capture, twice in a row", func(t *testing.T) {
		run(t, dir, nil)
		run(t, dir, nil)
	})
	t.Run("with explicit ports as a user without privileges", func(t *testing.T) {
		run(t, dir, &syscall.Credential{Uid: nobody, Gid: nobody}, "--explicit")
	})
}
