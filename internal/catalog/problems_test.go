package catalog

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
)

var update = flag.Bool("update", false, "rewrite the expected sentences")

// sentences are problems as a person reads them.
func sentences(problems []*adminv1.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%d: %s: %s (%s)\n", p.Line, p.Field, p.Message, p.Fix)
	}
	return b.String()
}

// Each *.bad.yaml has its sentences beside it; each *.good.yaml has none.
func TestFilesAreJudged(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, newStore(t), Limits{})
			apply(t, c, identity("stored", `sdsNames: ["stored-cert"]`, `spiffeID: "spiffe://example.org/stored"`)+
				"---\napiVersion: v1\nkind: Service\nmetadata: {name: stored}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n")
			_, problems, err := c.Apply(t.Context(), ApplyParams{Documents: []*adminv1.Document{{File: filepath.Base(file), Content: content}}})
			if err != nil {
				t.Fatal(err)
			}
			got := sentences(problems)
			if strings.HasSuffix(file, ".good.yaml") {
				if got != "" {
					t.Error(got)
				}
				return
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
			if got == "" {
				t.Error("a bad file was accepted")
			}
		})
	}
}

func TestExamplesAreAccepted(t *testing.T) {
	files, err := filepath.Glob("../../examples/resources/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	c := open(t, newStore(t), Limits{})
	var documents []*adminv1.Document
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, &adminv1.Document{File: file, Content: content})
	}
	if _, problems, err := c.Apply(t.Context(), ApplyParams{Documents: documents}); err != nil || len(problems) > 0 {
		t.Fatal(err, sentences(problems))
	}
	s, _ := c.Snapshot()
	for _, service := range s.Services() {
		if len(service.Problems) > 0 {
			t.Errorf("%s: %q", service.Host(), service.Problems)
		}
	}
}

func TestWhatIsNoYAMLHasALine(t *testing.T) {
	for content, want := range map[string]uint32{
		"\tkind: Service\n":                                    1,
		"kind: Service\n\tmetadata: {}\n":                      2,
		"\x7fELF\x02\x01\x01\x00":                              1,
		"\xff\xfe\xfd":                                         1,
		"kind: Service\nmetadata:\n  name: a\x00b\n":           3,
		"kind: Service\n---\nmetadata: {name: \"\xc3\x28\"}\n": 3,
	} {
		r := read("f.yaml", []byte(content), "default")
		if len(r.problems) == 0 || r.problems[len(r.problems)-1].Line != want {
			t.Errorf("%q: %v, want line %d", content, r.problems, want)
		}
	}
}
