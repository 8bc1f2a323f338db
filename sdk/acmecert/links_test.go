package acmecert

import (
	"os/exec"
	"strings"
	"testing"
)

// TestWhatIsLinked: only who imports a package pays for it.
func TestWhatIsLinked(t *testing.T) {
	for folder, never := range map[string][]string{
		".":             {"google.golang.org/grpc", "github.com/envoyproxy", "github.com/open-policy-agent", "go.opentelemetry.io"},
		"./objectstore": {"github.com/envoyproxy", "github.com/open-policy-agent"},
		"./acmesds":     {"github.com/caddyserver", "github.com/mholt", "github.com/open-policy-agent"},
	} {
		out, err := exec.Command("go", "list", "-deps", folder).Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			for _, prefix := range never {
				if strings.HasPrefix(line, prefix) {
					t.Errorf("%s links %s", folder, strings.TrimSpace(line))
				}
			}
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		path, deps, _ := strings.Cut(line, " ")
		if strings.Contains(deps, "caddyserver/certmagic") && !strings.Contains(path, "/sdk/acmecert") {
			t.Errorf("%s links certmagic", path)
		}
	}
}
