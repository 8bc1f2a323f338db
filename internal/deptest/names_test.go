package deptest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// declared are the functions, methods and types of the root module's
// packages, by package name.
func declared(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	for _, p := range list(t, root(t), "./internal/...") {
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			names := out[file.Name.Name]
			if names == nil {
				names = map[string]bool{}
				out[file.Name.Name] = names
			}
			for _, d := range file.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					names[d.Name.Name] = true
				case *ast.GenDecl:
					for _, s := range d.Specs {
						if s, ok := s.(*ast.TypeSpec); ok {
							names[s.Name.Name] = true
						}
					}
				}
			}
		}
	}
	return out
}

// TestTheWalksNameWhatIsThere reads the `package.Name` and
// `package.Type.Method` of docs/architecture.md and of the decisions.
func TestTheWalksNameWhatIsThere(t *testing.T) {
	names := declared(t)
	symbol := regexp.MustCompile("`([a-z]+)\\.([A-Za-z]\\w+)(?:\\.([A-Za-z]\\w+))?`")
	pages, err := filepath.Glob(filepath.Join(root(t), "docs", "decisions", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, filepath.Join(root(t), "docs", "architecture.md")) {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range symbol.FindAllStringSubmatch(string(raw), -1) {
			pkg := names[m[1]]
			if pkg == nil {
				continue // a file, a field of a resource, a host
			}
			seen++
			for _, name := range m[2:] {
				if name != "" && !pkg[name] {
					t.Errorf("%s names %s; package %s has no %s", filepath.Base(page), strings.Trim(m[0], "`"), m[1], name)
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d names were looked at: this test looks at the wrong thing", seen)
	}
}
