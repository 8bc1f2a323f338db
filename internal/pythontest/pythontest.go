// Package pythontest installs Python packages for tests that speak with real
// Python clients. It is imported by tests only.
package pythontest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long pip may take.
const patience = 3 * time.Minute

// Install returns a folder for PYTHONPATH with these packages ("spiffe==0.3.2").
// It is kept in the checkout's ignored tools folder, where a second run, and
// other tests, find it.
func Install(t testing.TB, packages ...string) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source of this package is not known")
	}
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	dir := filepath.Join(root, "tools", ".bin", "py-"+strings.ReplaceAll(strings.Join(packages, "-"), "==", "-"))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "py-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	args := append([]string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", temp}, packages...)
	if out, err := exec.CommandContext(ctx, "python3", args...).CombinedOutput(); err != nil {
		t.Fatalf("Python's %s cannot be installed: %v\n%s", strings.Join(packages, ", "), err, out)
	}
	if err := os.Rename(temp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		if _, there := os.Stat(dir); there != nil { // another test was first
			t.Fatal(err)
		}
	}
	return dir
}
