// Package modelservice uses examples/model-service as its README says, with
// the real control plane and agent, a Python client and Pebble.
package modelservice

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/pythontest"
	"github.com/legation-io/legation/test/acme/pebble"
)

func TestMain(m *testing.M) {
	code := m.Run()
	pebble.RemoveBuilt()
	os.Exit(code)
}

// TestTheReadmeCanBeFollowed types the commands of the example's README as
// they stand, but for building and installing, and waits where a person would
// look first; in a network of its own, since its ports are fixed.
func TestTheReadmeCanBeFollowed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: the client locks its memory, and the ports are in a network namespace")
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	example := filepath.Join(root, "examples", "model-service")
	dir, err := os.MkdirTemp("", "ms")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	for _, build := range [][]string{
		{root, "build", "-o", bin + "/", "./cmd/legation", "./cmd/legation-agent"},
		{example, "build", "-o", bin + "/", ".", "./load"},
	} {
		cmd := exec.Command("go", build[1:]...)
		cmd.Dir = build[0]
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v in %s: %v\n%s", build[1:], build[0], err, out)
		}
	}
	requirements, err := os.ReadFile(filepath.Join(example, "client", "requirements.txt"))
	if err != nil {
		t.Fatal(err)
	}
	packages := pythontest.Install(t, strings.Fields(string(requirements))...)
	ca := pebble.Build(t)

	raw, err := os.ReadFile(filepath.Join(example, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	script := "set +m\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(raw), -1) {
		script += block[1]
	}
	for _, r := range []struct{ written, instead string }{
		{"make build\n", ""},
		{"(cd examples/model-service && CGO_ENABLED=0 go build -o ../../bin/ . ./load)\n", ""},
		{"python3 -m pip install --quiet --target bin/python -r examples/model-service/client/requirements.txt\n", ""},
		{"export PATH=$PWD/bin:$PATH PYTHONPATH=$PWD/bin/python EXAMPLE=$PWD/examples/model-service\n", "export PATH=" + bin + ":$PATH PYTHONPATH=" + packages + " EXAMPLE=" + example + "\n"},
		{`cd "$(mktemp -d)"`, "cd " + dir},
		{"GOBIN=$PWD go install github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1\n", "cp " + ca + " .\n"},
	} {
		if strings.Count(script, r.written) != 1 {
			t.Errorf("the README has not once %q: this test does not fit it any more", r.written)
		}
		script = strings.Replace(script, r.written, r.instead, 1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", "ip link set lo up && exec bash -c \"$0\"", script)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	for _, want := range []string{
		"WorkloadIdentity/notebook created in default", `{"embedding":[`, "spiffe://example.org/ns/default/sa/notebook, answered 403: 403 Forbidden",
		"cause=denied spiffe_id=spiffe://example.org/ns/default/sa/notebook", `{"label":"positive","score":0.9309}`,
		"20000 answered, 0 failed", `legation_policy_decisions_total{cause="denied",decision="denied"} `,
		`legation_tls_handshake_seconds_count{result="ok",side="server"} `, "legation_mtls_connections_ended_total 0",
		"revoked 1 certificate in CRL 2", "notebook is revoked and blocked until lifted", `{"models":["embed","sentiment"]}`,
	} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("nobody said %q", want)
		}
	}
	if n := strings.Count(said.String(), "\n1000 answered, 0 failed"); n != 2 {
		t.Errorf("%d of two loads of 1000 requests went well", n)
	}
	if n := strings.Count(said.String(), "\nlegation_"); n != 4 {
		t.Errorf("%d metrics are shown, not the 4 of the README", n)
	}
	if strings.Contains(said.String(), "No such file") {
		t.Error("something is looked for that is not there yet")
	}
	if t.Failed() || err != nil {
		for _, log := range []string{"server.log", "agent.log", "model.log", "pebble.log"} {
			raw, _ := os.ReadFile(filepath.Join(dir, log))
			t.Logf("%s:\n%s", log, raw[max(0, len(raw)-8000):])
		}
		t.Fatalf("%v\n%s", err, said.String())
	}
}
