package workloadapi

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pySpiffe is the PyPI client this is tested with.
const pySpiffe = "spiffe==0.3.2"

const pythonProgram = `
import sys
from spiffe import WorkloadApiClient, SpiffeId
with WorkloadApiClient(socket_path="unix://" + sys.argv[1]) as client:
    svid = client.fetch_x509_svid(timeout=10)
    print("x509", svid.spiffe_id)
    context = client.fetch_x509_context(timeout=10)
    for bundle in context.x509_bundle_set.bundles:
        print("roots", len(bundle.x509_authorities))
    token = client.fetch_jwt_svid(audience={"db"})
    print("jwt", token.spiffe_id)
    bundles = client.fetch_jwt_bundles(timeout=10)
    print("validated", client.validate_jwt_svid(token.token, audience="db").spiffe_id)
    try:
        client.validate_jwt_svid(token.token, audience="other")
    except Exception as e:
        print("refused", type(e).__name__)
`

func TestPythonClient(t *testing.T) {
	packages := installed(t)
	a := serve(t, Limits{}, webEntry())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-c", pythonProgram, a.socket)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+packages)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	id := webEntry().SpiffeId
	for _, want := range []string{"x509 " + id, "roots 1", "jwt " + id, "validated " + id, "refused "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("misses %q:\n%s", want, out)
		}
	}
}

// installed keeps the client in the checkout's ignored tools folder, where a
// second run finds it.
func installed(t *testing.T) string {
	t.Helper()
	dir, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "tools", ".bin", "py-"+strings.ReplaceAll(pySpiffe, "==", "-"))
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
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", temp, pySpiffe).CombinedOutput()
	if err != nil {
		t.Fatalf("the Python client %s cannot be installed: %v\n%s", pySpiffe, err, out)
	}
	if err := os.Rename(temp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		if _, there := os.Stat(dir); there != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}
