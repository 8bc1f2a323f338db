package deptest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is generated in docs/")

// table is the map as docs/architecture.md shows it.
func table() string {
	var b strings.Builder
	b.WriteString("| folder | layer | may import of ours, besides vocabulary | what it is |\n|---|---|---|---|\n")
	code := func(paths []string) string {
		var out []string
		for _, p := range paths {
			out = append(out, "`"+strings.TrimPrefix(p, "internal/")+"`")
		}
		if out == nil {
			return "–"
		}
		return strings.Join(out, " ")
	}
	for _, f := range Folders {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", strings.TrimPrefix(f.Path, "internal/"), f.Layer, code(f.May), f.What)
	}
	b.WriteString("\nPaths are under `internal/` unless they start with another folder. Exceptions, each for its reason:\n\n")
	for _, e := range Exceptions {
		fmt.Fprintf(&b, "- `%s` imports `%s`: %s.\n", strings.TrimPrefix(e.From, "internal/"), strings.TrimPrefix(e.To, "internal/"), e.Why)
	}
	return b.String()
}

func TestTheArchitecturePageHasThisMap(t *testing.T) {
	const begin, end = "<!-- map: begin -->\n", "<!-- map: end -->"
	path := filepath.Join(root(t), "docs", "architecture.md")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", path, begin, end)
	}
	want := head + begin + table() + end + tail
	if want == string(raw) {
		return
	}
	if !*update {
		t.Fatal("docs/architecture.md does not show the map of internal/deptest/map.go; write it: go test ./internal/deptest -update")
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
