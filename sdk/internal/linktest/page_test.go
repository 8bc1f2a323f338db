package linktest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestThePageOfTheSDKIsTrue compares docs/sdk.md with the packages: its table
// has each of them with what it may link, and its code is in their examples.
func TestThePageOfTheSDKIsTrue(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/sdk.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)

	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\| ([^|]+) \\|").FindAllStringSubmatch(page, -1) {
		pkg, links := m[1], strings.Split(m[2], ", ")
		listed[pkg] = true
		if m[2] == "–" {
			links = nil
		}
		want := slices.Clone(allowed(pkg))
		slices.Sort(want)
		slices.Sort(links)
		if !slices.Equal(links, slices.Compact(want)) {
			t.Errorf("docs/sdk.md: %s links %v, it says; the test of what packages link says %v", pkg, links, want)
		}
	}
	for _, line := range list(t, "./...") {
		pkg := strings.TrimPrefix(line, module+"/")
		public := !strings.Contains(pkg, "internal") && !strings.HasPrefix(pkg, "examples/") && !strings.HasPrefix(pkg, "api/")
		if public && !isForTests(pkg) && !listed[pkg] {
			t.Errorf("docs/sdk.md: its table lacks %s", pkg)
		}
	}

	section := regexp.MustCompile("(?s)\n## [^\n]*`([a-z0-9/]+)`\n(.*?)(?:\n## |$)")
	block := regexp.MustCompile("(?s)```go\n(.*?)```")
	seen := 0
	for rest := page; ; {
		m := section.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		pkg, text := rest[m[2]:m[3]], rest[m[4]:m[5]]
		rest = rest[m[5]:]
		code := examples(t, pkg)
		for _, b := range block.FindAllStringSubmatch(text, -1) {
			seen++
			for line := range strings.Lines(b[1]) {
				if line = strings.TrimSpace(line); line != "" && line != "// ..." && !code[line] {
					t.Errorf("docs/sdk.md: %s: no example has this line: %s", pkg, line)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("docs/sdk.md has %d pieces of code; is it still read right?", seen)
	}
}

// examples are the lines of a package's examples.
func examples(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "example*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("%s has no examples (%v)", pkg, err)
	}
	lines := map[string]bool{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			lines[strings.TrimSpace(line)] = true
		}
	}
	return lines
}
