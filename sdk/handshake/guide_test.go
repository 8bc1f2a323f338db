package handshake

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"crypto/tls"
)

func TestTheGuideExplainsEachCauseAndNoOther(t *testing.T) {
	raw, err := os.ReadFile("../../docs/handshake-failures.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(Guide, "/docs/handshake-failures.md") {
		t.Errorf("Guide is %s", Guide)
	}
	var have, want []string
	for section := range strings.SplitSeq(string(raw), "\n### ") {
		name, text, _ := strings.Cut(section, "\n")
		if have == nil && strings.HasPrefix(section, "# ") {
			have = []string{}
			continue
		}
		have = append(have, name)
		if before, after, ok := strings.Cut(text, "**Remedy.** "); !ok || len(before) < 20 || len(after) < 20 {
			t.Errorf("%s: what it means and its remedy are missing", name)
		}
	}
	for _, c := range Causes() {
		want = append(want, string(c))
	}
	// What only Envoy says comes last; a cause of both has one section.
	proxy := constants(t, "../../internal/agent/envoy", "Cause")
	if len(proxy) < 20 {
		t.Fatalf("found only %v", proxy)
	}
	own := have[min(len(want), len(have)):]
	for name, value := range proxy {
		if value != "" && !known[Cause(value)] && !slices.Contains(own, value) {
			t.Errorf("the guide lacks %s = %q of the proxies", name, value)
		}
	}
	for _, section := range own {
		if known[Cause(section)] || !slices.Contains(slices.Collect(maps.Values(proxy)), section) {
			t.Errorf("the guide has %q, which is no cause, or not there", section)
		}
	}
	have = have[:len(have)-len(own)]
	if !slices.Equal(have, want) {
		t.Errorf("the guide has\n%v\nthe causes are\n%v", have, want)
	}
}

// constants reads the string constants of a type from a package's source.
func constants(t *testing.T, folder, typ string) map[string]string {
	t.Helper()
	found := map[string]string{}
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), folder+"/"+f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); ok && id.Name == typ {
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
					found[spec.Names[0].Name], _ = strconv.Unquote(lit.Value)
				}
			}
			return true
		})
	}
	return found
}

func TestCausesListsEveryCauseOnce(t *testing.T) {
	declared := constants(t, ".", "Cause")
	if len(declared) != len(Causes()) || len(known) != len(Causes()) {
		t.Errorf("%d causes are declared, Causes has %d, %d of them different", len(declared), len(Causes()), len(known))
	}
	form := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	for name, value := range declared {
		if !known[Cause(value)] || !form.MatchString(value) {
			t.Errorf("%s = %q is not in Causes, or no label and anchor", name, value)
		}
	}
}

func TestEachCauseOfTheVerifierIsOneOfTheHandshake(t *testing.T) {
	verifier := constants(t, "../chaincheck", "Cause")
	if len(verifier) < 16 {
		t.Fatalf("found only %v", verifier)
	}
	for name, value := range verifier {
		if !known[Cause(value)] {
			t.Errorf("chaincheck.%s = %q is no cause of a handshake", name, value)
		}
	}
}

func TestEachAlertHasACause(t *testing.T) {
	for n := 1; n < 256; n++ {
		text := tls.AlertError(n).Error()
		r, ok := refusals[tls.AlertError(n)]
		if named := !strings.HasPrefix(text, "tls: alert("); named && !ok {
			t.Errorf("crypto/tls knows the alert %q, we do not say what it means", text)
		}
		if ok && !known[r.cause] {
			t.Errorf("%q: %q is no cause", text, r.cause)
		}
		if got, ok := remoteAlert(alertError(tls.AlertError(n))); !ok || got != tls.AlertError(n) {
			t.Errorf("%q is read as %v %v", text, got, ok)
		}
	}
}
