package handshake

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The matrix produces the common texts by real handshakes; some need a peer
// that breaks the standard on purpose. All of them must stand in the source of
// the running Go, so that a new version that says it otherwise is noticed.
func TestTheRunningGoSaysWhatTheTableKnows(t *testing.T) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	source := goSource(t, filepath.Join(strings.TrimSpace(string(out)), "src"), "crypto/tls", "crypto/x509", "net/http")
	for _, known := range texts {
		if known.start != "tls: " && !strings.Contains(source, known.start) {
			t.Errorf("crypto/tls no longer says %q (%s)", known.start, known.cause)
		}
	}
	for _, known := range typedTexts {
		start := strings.TrimPrefix(known.start, "x509: ")
		start = strings.TrimPrefix(start, "tls: ") // RecordHeaderError writes it
		switch {
		case known.start == "no identity yet", known.start == "x509: ":
			continue // ours; whatever is left
		case known.start == "local error: tls: ":
			start = `Op: "local error"`
		}
		if !strings.Contains(source, start) {
			t.Errorf("Go no longer says %q (%s)", known.start, known.cause)
		}
		if known.part != "" && !strings.Contains(source, strings.TrimSpace(known.part)) {
			t.Errorf("Go no longer says %q (%s)", known.part, known.cause)
		}
	}
	for _, text := range []string{`Op: "remote error"`, "http: TLS handshake error from %s: %v"} {
		if !strings.Contains(source, text) {
			t.Errorf("Go no longer says %q", text)
		}
	}
}

func goSource(t *testing.T, root string, packages ...string) string {
	t.Helper()
	var b strings.Builder
	for _, p := range packages {
		files, err := filepath.Glob(filepath.Join(root, p, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("the source of %s is not at %s: %v", p, root, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			b.Write(raw)
		}
	}
	return b.String()
}
