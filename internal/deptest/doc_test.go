package deptest

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
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

// section replaces, or compares, what stands between two marks of a page.
func section(t *testing.T, page, name, want string) {
	t.Helper()
	begin, end := "<!-- "+name+": begin -->\n", "<!-- "+name+": end -->"
	path := filepath.Join(root(t), "docs", page)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q … %q", path, begin, end)
	}
	whole := head + begin + want + end + tail
	if whole == string(raw) {
		return
	}
	if !*update {
		t.Fatalf("docs/%s: its section %q is behind the code; write it: go test ./internal/deptest -update", page, name)
	}
	if err := os.WriteFile(path, []byte(whole), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTheArchitecturePageHasThisMap(t *testing.T) {
	section(t, "architecture.md", "map", table())
}

// testNames are all tests of the repository: name to files below its root.
func testNames(t *testing.T) map[string][]string {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	names := map[string][]string{}
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "tools" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".") && d.Name() != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root(t), path)
		for _, m := range declared.FindAllSubmatch(raw, -1) {
			names[string(m[1])] = append(names[string(m[1])], below)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

var attackID = regexp.MustCompile(`A\d\d`)

// attackIDs are the ids in a test's name: TestA10A51NoRPC… has two.
func attackIDs(test string) []string {
	rest, _ := strings.CutPrefix(test, "Test")
	var ids []string
	for len(rest) >= 3 && attackID.MatchString(rest[:3]) {
		ids, rest = append(ids, rest[:3]), rest[3:]
	}
	return ids
}

func TestTheSecurityPageHasEveryAttackWithItsTests(t *testing.T) {
	names := testNames(t)
	by := map[string][]string{}
	for name := range names {
		for _, id := range attackIDs(name) {
			by[id] = append(by[id], name)
		}
	}
	var b strings.Builder
	b.WriteString("| id | attack | tests | open |\n|---|---|---|---|\n")
	rows := map[string]bool{}
	for _, a := range Attacks {
		rows[a.ID] = true
		tests := append([]string{}, by[a.ID]...)
		sort.Strings(tests)
		for _, also := range a.Also {
			if names[also] == nil {
				t.Errorf("%s: there is no test %s", a.ID, also)
				continue
			}
			if !slices.Contains(tests, also) {
				tests = append(tests, also)
			}
		}
		open := a.Open
		if len(tests) == 0 {
			open = "no test"
			t.Errorf("%s has no test", a.ID)
		}
		cells := make([]string, len(tests))
		for i, name := range tests {
			cells[i] = fmt.Sprintf("`%s` (%s)", name, filepath.Dir(names[name][0]))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", a.ID, a.What, strings.Join(cells, "<br>"), open)
	}
	for _, id := range issue {
		if !rows[id] {
			t.Errorf("%s has no row in internal/deptest/attacks.go", id)
		}
	}
	for id := range by {
		if !rows[id] {
			t.Errorf("%v carry the id %s, which has no row in internal/deptest/attacks.go", by[id], id)
		}
	}
	if *update {
		section(t, "security.md", "attacks", b.String())
		return
	}
	raw, err := os.ReadFile(filepath.Join(root(t), "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	for row := range strings.Lines(b.String()) {
		if strings.Contains(string(raw), row) {
			continue
		}
		// A new test makes the page incomplete, not wrong; a row that is not
		// there at all, or names a test that is gone, is wrong.
		if head := strings.Join(strings.SplitAfterN(row, "|", 4)[:3], ""); strings.Contains(string(raw), head) {
			t.Logf("docs/security.md is behind; write it: go test ./internal/deptest -update\n%s", row)
		} else {
			t.Errorf("docs/security.md lacks a row; write it: go test ./internal/deptest -update\n%s", row)
		}
	}
}

// TestWhatPagesNameExists reads the tests and files that pages name in
// backquotes.
func TestWhatPagesNameExists(t *testing.T) {
	names := testNames(t)
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	file := regexp.MustCompile("`((?:internal|sdk|test|api|cmd|examples|docs|bench)/[\\w./-]+)`")
	link := regexp.MustCompile(`\]\(([\w./-]+)(?:#[\w-]+)?\)`)
	pages, err := filepath.Glob(filepath.Join(root(t), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	more, _ := filepath.Glob(filepath.Join(root(t), "docs", "decisions", "*.md"))
	for _, page := range append(append(pages, more...), filepath.Join(root(t), "README.md")) {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(raw, -1) {
			if names[string(m[1])] == nil {
				t.Errorf("%s names the test %s, which is not there", filepath.Base(page), m[1])
			}
		}
		for _, m := range file.FindAllSubmatch(raw, -1) {
			if strings.HasPrefix(string(m[1]), "bench/out/") {
				continue // made by a run
			}
			if _, err := os.Stat(filepath.Join(root(t), string(m[1]))); err != nil {
				t.Errorf("%s names %s: %v", filepath.Base(page), m[1], err)
			}
		}
		for _, m := range link.FindAllSubmatch(raw, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), string(m[1]))); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(page), m[1], err)
			}
		}
	}
}
