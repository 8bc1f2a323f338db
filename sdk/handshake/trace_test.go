package handshake

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/trace"
	"strings"
	"testing"

	"github.com/legation-io/legation/sdk/chaincheck"
)

func TestAHandshakeIsARegionOfTheTrace(t *testing.T) {
	w := newWorld(t)
	var recorded bytes.Buffer
	if err := trace.Start(&recorded); err != nil {
		t.Fatal(err)
	}
	server, client := w.expects(w.foreign.issue(t, "spiffe://example.org/client", nil), w.judge(chaincheck.Client))
	meet(t, server, client)
	trace.Stop()
	path := filepath.Join(t.TempDir(), "trace")
	if err := os.WriteFile(path, recorded.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "tool", "trace", "-d=parsed", path).Output()
	if err != nil {
		t.Fatalf("go tool trace: %v", err)
	}
	text := string(out)
	for _, want := range []string{"RegionBegin", "RegionEnd", `"tls handshake server"`, `"tls handshake client"`, `Category="tls handshake failed" Message="unknown_ca"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the trace lacks %s", want)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(text) {
			if strings.Contains(line, "Region") || strings.Contains(line, "Log") {
				t.Log(line)
			}
		}
	}
}
