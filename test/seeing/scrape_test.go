// Package seeing holds what people and their monitoring see of the real
// programs: metrics, health, status in broken situations.
package seeing

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/test/stand"
)

func TestMain(m *testing.M) { stand.Main(m) }

// get is a page of a program's HTTP port.
func get(addr, path string) (int, string, error) {
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// families are our metrics in a scrape: name to type.
func families(t *testing.T, addr string) map[string]string {
	t.Helper()
	_, text, err := get(addr, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for line := range strings.Lines(text) {
		var name, typ string
		if n, _ := fmt.Sscanf(line, "# TYPE %s %s", &name, &typ); n == 2 && strings.HasPrefix(name, "legation_") {
			found[name] = typ
		}
	}
	return found
}

// entry declares an identity of this test's programs on a node.
func entry(name, node string, selectors ...string) string {
	return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: %s, namespace: default}\nspec:\n  node: %s\n  selectors: [%s]\n---\n",
		name, node, `"`+strings.Join(selectors, `", "`)+`"`)
}

// run starts a program with its Envoy.
func run(t *testing.T, s *stand.Stand, a *stand.Agent, flags ...string) *stand.Process {
	t.Helper()
	argv := append([]string{filepath.Join(s.Bin, "legation-agent"), "run", "--socket", a.Socket, "--envoy", envoytest.Binary(t), "--drain-time", "0s"}, flags...)
	p := stand.Start(t, "run", append(argv, "--", "sleep", "600")...)
	p.Until("the program has its identity", func() error {
		out, err := a.Legation("connections", "-o", "json")
		if err != nil {
			return err
		}
		_ = out
		out, err = a.Legation("status", "--node", "-o", "json")
		if !strings.Contains(out, `"envoy/`) {
			return fmt.Errorf("no session yet: %v", err)
		}
		return nil
	})
	return p
}

// documented reads the tables of docs/metrics.md: name to type.
func documented(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(stand.Root(t), "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(legation_[a-z0-9_]+)` \\| ([a-z]+) \\|").FindAllStringSubmatch(string(raw), -1) {
		if found[m[1]] != "" {
			t.Errorf("docs/metrics.md lists %s twice", m[1])
		}
		found[m[1]] = m[2]
	}
	return found
}

// inSource are the names that the programs' source registers.
func inSource(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	name := regexp.MustCompile(`"(legation_[a-z0-9_]+)"`)
	for _, dir := range []string{"internal", "cmd", "sdk/renewal"} {
		err := filepath.WalkDir(filepath.Join(stand.Root(t), dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(raw), "prometheus") {
				return err
			}
			for _, m := range name.FindAllStringSubmatch(string(raw), -1) {
				found[m[1]] = path
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}
