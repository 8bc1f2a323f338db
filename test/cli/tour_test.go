package cli

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
)

// TestTheTourInTheReadmeCanBeFollowed types the commands of README.md as they
// stand, but for the building, and waits where a person would look first. As
// root it does so in namespaces of its own: the tour's ports are fixed.
func TestTheTourInTheReadmeCanBeFollowed(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	envoy := os.Getenv("LEGATION_ENVOY")
	if envoy == "" {
		envoy = filepath.Join(root, "tools", "envoy", "envoy")
	}
	if _, err := os.Stat(envoy); err != nil {
		t.Fatalf("%v; fetch it: make envoy", err)
	}
	raw, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, tour, ok := strings.Cut(string(raw), "## Five minutes")
	tour, _, ok2 := strings.Cut(tour, "\n## ")
	if !ok || !ok2 {
		t.Fatal("README.md has no section \"Five minutes\"")
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(tour, -1)
	if len(blocks) < 10 {
		t.Fatalf("only %d blocks of commands", len(blocks))
	}
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // Envoy runs as another user
		t.Fatal(err)
	}
	replaced := 0
	typed := func(block, written, instead string) string {
		if strings.Contains(block, written) {
			replaced++
		}
		return strings.ReplaceAll(block, written, instead)
	}
	var script strings.Builder
	script.WriteString("set +m\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\nwithin() { for i in $(seq 300); do \"$@\" >/dev/null 2>&1 && return; sleep 0.1; done; echo \"in vain: $*\"; exit 1; }\n")
	for _, m := range blocks {
		b := typed(m[1], "make build envoy\n", "")
		b = typed(b, "export PATH=$PWD/bin:$PATH LEGATION_ENVOY=$PWD/tools/envoy/envoy", "export PATH="+bin+":$PATH LEGATION_ENVOY="+envoy)
		b = typed(b, `cd "$(mktemp -d)"`, "cd "+dir)
		b = typed(b, "2>server.log &\n", "2>server.log &\nwithin legation status\n")
		b = typed(b, "sleep 1\n", "within legation status --node\n")
		b = typed(b, "sleep 2\n", "within curl -sf http://127.0.0.1:9001/\n")
		b = typed(b, "legation connections\nlegation cert list\n", "within sh -c 'legation connections | grep inbound'\nlegation connections\nlegation cert list\n")
		b = typed(b, "legation connections --failures\n", "within sh -c 'legation connections --failures | grep plaintext'\nlegation connections --failures\n")
		script.WriteString(b)
	}
	if replaced != 8 {
		t.Errorf("%d of 8 places of the tour were found: this test and README.md do not fit any more", replaced)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	argv := []string{"bash", "-c", script.String()}
	if os.Geteuid() == 0 {
		argv = append([]string{"unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", "ip link set lo up && exec \"$@\"", "tour"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	for _, want := range []string{
		"WorkloadEntry/api-1 created in default", "laptop  connected", "TLSv1.3", "inbound    spiffe://example.org/ns/default/sa/web",
		"inbound    127.0.0.1:", "plaintext", "gets spiffe://example.org/ns/default/sa/web by entry default/web", "acknowledged   2",
		"CRL 2 with 1 revoked", "legation lift spiffe://example.org/ns/default/sa/web", "is issued again",
		"on laptop, with the token in FILE:\n  legation-agent serve --trust-domain example.org --server HOST:15012 --join-token-file FILE --bundle-hash sha256:",
		"0 EndpointSlice, 0 Policy, 1 Service, 1 WorkloadEntry, 2 WorkloadIdentity",
	} {
		if !strings.Contains(tour, want) {
			t.Errorf("README.md does not show %q", want)
		}
		if !strings.Contains(said.String(), want) {
			t.Errorf("nobody said %q", want)
		}
	}
	if n := strings.Count(said.String(), "hello from api"); n != 2 {
		t.Errorf("the service answered %d times, not before and after the revocation", n)
	}
	if t.Failed() {
		for _, log := range []string{"server.log", "agent.log", "api.log", "web.log"} {
			raw, _ := os.ReadFile(filepath.Join(dir, log))
			t.Logf("%s:\n%s", log, raw)
		}
		t.Fatalf("%v\n%s", err, said.String())
	}
}

// A server or an agent that does not start is not waited for.
func TestTheToursWaitsEndWithWhatTheyWaitFor(t *testing.T) {
	for _, readme := range []string{"README.md", "examples/model-service/README.md"} {
		raw, err := os.ReadFile(filepath.Join("..", "..", readme))
		if err != nil {
			t.Fatal(err)
		}
		waits := regexp.MustCompile(`(?m)^until \[ -S (admin|agent)\.sock \].*$`).FindAllStringSubmatch(string(raw), -1)
		if len(waits) == 0 {
			t.Errorf("%s waits for no socket", readme)
		}
		for _, m := range waits {
			log := map[string]string{"admin": "server.log", "agent": "agent.log"}[m[1]]
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			cmd := exec.CommandContext(ctx, "bash", "-c", "legation server --trust-domain example.org 2>"+log+" --data-dir data --listen 127.0.0.1:0 --metrics '' --admin-socket /proc/version &\n"+m[0])
			cmd.Dir, cmd.WaitDelay = t.TempDir(), time.Second
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			said, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(said), "/proc/version exists and is not a socket") {
				t.Errorf("%s: %s\n%v: %s", readme, m[0], err, said)
			}
			cancel()
		}
	}
}
