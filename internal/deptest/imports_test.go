package deptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pkg is what go list says of one package.
type pkg struct {
	ImportPath, Dir string
	GoFiles         []string
	Imports         []string
	Standard        bool
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func list(t *testing.T, dir string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,GoFiles,Imports,Standard"}, args...)...)
	cmd.Dir = dir
	var talk bytes.Buffer
	cmd.Stderr = &talk
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, talk.Bytes())
	}
	var out []pkg
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
}

// folder is the row of a package: the longest path above it.
func folder(path string) (Folder, bool) {
	var best Folder
	for _, f := range Folders {
		if (path == f.Path || strings.HasPrefix(path, f.Path+"/")) && len(f.Path) > len(best.Path) {
			best = f
		}
	}
	return best, best.Path != ""
}

// judge says what is wrong with one import between two rows, or "".
func judge(from, to Folder) string {
	if from.Path == to.Path || slices.ContainsFunc(Exceptions, func(e Exception) bool { return e.From == from.Path && e.To == to.Path }) {
		return ""
	}
	switch {
	case from.Layer == Test:
		return ""
	case to.Layer == Test:
		return "it is for tests only"
	case from.Layer == Door && to.Layer == Door:
		return "doors do not import doors: what both need is a decider below them"
	case to.Layer > from.Layer:
		return fmt.Sprintf("a %s does not import a %s: imports point down", from.Layer, to.Layer)
	case to.Layer == Vocabulary, slices.Contains(from.May, to.Path):
		return ""
	case slices.Contains(from.May, "*"):
		if from.Path == "internal/server" && strings.HasPrefix(to.Path, "internal/agent") {
			return "the control plane knows its agents by api only"
		}
		return ""
	}
	return "no row of the map allows it: move the code, or add it to internal/deptest/map.go and say why in the commit"
}

func TestEveryImportIsOnTheMap(t *testing.T) {
	used := map[Exception]bool{}
	for _, p := range list(t, root(t), "./...") {
		path := strings.TrimPrefix(p.ImportPath, Module+"/")
		from, ok := folder(path)
		if !ok {
			t.Errorf("%s has no row in internal/deptest/map.go", path)
			continue
		}
		for _, imported := range p.Imports {
			below, ours := strings.CutPrefix(imported, Module+"/")
			if !ours {
				continue
			}
			to, ok := folder(below)
			if !ok {
				t.Errorf("%s imports %s, which has no row in internal/deptest/map.go", path, below)
				continue
			}
			if wrong := judge(from, to); wrong != "" {
				t.Errorf("%s imports %s: %s", path, below, wrong)
			}
			for _, e := range Exceptions {
				if e.From == from.Path && e.To == to.Path {
					used[e] = true
				}
			}
		}
	}
	for _, e := range Exceptions {
		if !used[e] {
			t.Errorf("the exception %s → %s is not needed any more: remove it", e.From, e.To)
		}
	}
}

func TestTheMapIsJudgedStrictly(t *testing.T) {
	row := func(path string) Folder {
		f, ok := folder(path)
		if !ok {
			t.Fatalf("no row for %s", path)
		}
		return f
	}
	for _, tt := range []struct{ name, from, to, want string }{
		{"a door does not import a door", "internal/server/admin", "internal/server/node", "doors do not import doors"},
		{"a decider does not import a door", "internal/ca", "internal/server/node", "imports point down"},
		{"an outlet does not import a decider", "internal/store", "internal/catalog", "imports point down"},
		{"vocabulary imports vocabulary only", "internal/fault", "internal/store", "imports point down"},
		{"the agent never imports the catalog", "internal/agent", "internal/catalog", "no row"},
		{"the agent never imports the compiler", "internal/agent/session", "internal/compile", "no row"},
		{"the agent never imports the authority", "internal/agent/svid", "internal/ca", "no row"},
		{"the agent never imports the store", "internal/agent/upstream", "internal/store/etcd", "no row"},
		{"the server never imports the agent", "internal/server", "internal/agent/upstream", "by api only"},
		{"the command line never imports the server", "internal/cli", "internal/server", "no row"},
		{"compile reaches no store", "internal/compile", "internal/store", "no row"},
		{"no program imports what helps tests", "internal/server", "internal/memnet", "for tests only"},
		{"assembly names backends", "internal/server", "internal/store/etcd", ""},
		{"a decider uses an outlet that its row names", "internal/ca", "internal/ledger", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(row(tt.from), row(tt.to))
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("%s → %s: %q; want %q", tt.from, tt.to, got, tt.want)
			}
		})
	}
}

func TestNoFolderIsADrawerForEverything(t *testing.T) {
	vague := regexp.MustCompile(`(^|/)(util|utils|common|helper|helpers|misc|shared|base|lib)(/|$)`)
	for _, dir := range []string{".", "sdk", "test"} {
		for _, p := range list(t, filepath.Join(root(t), dir), "./...") {
			if path := strings.TrimPrefix(p.ImportPath, Module); vague.MatchString(path) {
				t.Errorf("%s: name it after what it answers", path)
			}
		}
	}
}

func TestTheSDKNeedsNothingOfTheRootModule(t *testing.T) {
	for _, p := range list(t, filepath.Join(root(t), "sdk"), "-deps", "./...") {
		if p.ImportPath == Module || strings.HasPrefix(p.ImportPath, Module+"/") && !strings.HasPrefix(p.ImportPath, Module+"/sdk/") {
			t.Errorf("the SDK's dependency graph has %s", p.ImportPath)
		}
	}
	raw, err := os.ReadFile(filepath.Join(root(t), "sdk", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)` + regexp.QuoteMeta(Module) + ` v`).Match(raw) {
		t.Error("sdk/go.mod requires the root module")
	}
}

// What a pure package must neither import nor call. net/netip is values only.
var (
	impurePackages = []string{"os", "os/exec", "os/signal", "net", "net/http", "syscall", "math/rand", "math/rand/v2", "crypto/rand", "io/fs", "io/ioutil",
		"golang.org/x/sys/unix", "google.golang.org/grpc", Module + "/internal/durable"}
	clockCalls = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTicker", "NewTimer"}
)

func TestCompileAndDistributeArePure(t *testing.T) {
	for _, tt := range []struct {
		folder string
		clock  bool // may it be handed a clock
	}{
		{"internal/compile", false},
		{"internal/distribute", true}, // its ledger says since when; the clock is a parameter
	} {
		p := list(t, root(t), "./"+tt.folder)[0]
		banned := impurePackages
		if !tt.clock {
			banned = append(slices.Clone(banned), Module+"/internal/clock")
		}
		for _, i := range p.Imports {
			if slices.Contains(banned, i) {
				t.Errorf("%s imports %s", tt.folder, i)
			}
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clockCalls, sel.Sel.Name) {
						t.Errorf("%s calls time.%s", fset.Position(n.Pos()), sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// agentMayNotLink are whole trees of modules, and ours.
var agentMayNotLink = []string{
	"k8s.io/", "sigs.k8s.io/", "go.etcd.io/", "github.com/open-policy-agent/",
	Module + "/internal/catalog", Module + "/internal/compile", Module + "/internal/ca", Module + "/internal/ledger",
	Module + "/internal/store", Module + "/internal/server",
}

func TestTheAgentLinksNoStoreNoKubernetesNoOPA(t *testing.T) {
	n := 0
	for _, p := range list(t, root(t), "-deps", "./cmd/legation-agent") {
		n++
		for _, banned := range agentMayNotLink {
			if p.ImportPath == strings.TrimSuffix(banned, "/") || strings.HasPrefix(p.ImportPath, strings.TrimSuffix(banned, "/")+"/") {
				t.Errorf("legation-agent links %s", p.ImportPath)
			}
		}
	}
	if n < 100 {
		t.Fatalf("go list named %d packages only: this test looks at the wrong thing", n)
	}
}
