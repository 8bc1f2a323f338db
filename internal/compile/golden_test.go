package compile

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/store/memory"
)

var update = flag.Bool("update", false, "rewrite the expected resources")

var (
	testDomain  = spiffeid.RequireTrustDomainFromString("example.org")
	testOptions = Options{TrustDomain: testDomain, Node: "web-1"}
)

// open starts a catalog; it ends with the test.
func open(t testing.TB) *catalog.Catalog {
	t.Helper()
	return openAt(t, memory.New())
}

func openAt(t testing.TB, s *memory.Store) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(t.Context(), catalog.Params{Store: s, TrustDomain: testDomain})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; _ = s.Close() })
	return c
}

// tryApply applies what may be refused.
func tryApply(t testing.TB, c *catalog.Catalog, content string) {
	t.Helper()
	if _, _, err := c.Apply(t.Context(), catalog.ApplyParams{Documents: []*adminv1.Document{{File: "test", Content: []byte(content)}}}); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, c *catalog.Catalog, content string) {
	t.Helper()
	if _, _, err := c.Delete(t.Context(), catalog.DeleteParams{IgnoreNotFound: true, Documents: []*adminv1.Document{{File: "test", Content: []byte(content)}}}); err != nil {
		t.Fatal(err)
	}
}

func sorted(m map[string]*distribute.Resource) []*distribute.Resource {
	return slices.SortedFunc(maps.Values(m), compare)
}

func apply(t testing.TB, c *catalog.Catalog, content string) *catalog.Snapshot {
	t.Helper()
	_, problems, err := c.Apply(t.Context(), catalog.ApplyParams{Documents: []*adminv1.Document{{File: "test", Content: []byte(content)}}})
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	s, _ := c.Snapshot()
	return s
}

// input is one *.in.yaml: what is declared, and the subject.
type input struct {
	Catalog string
	Subject map[string]any
	NoIPv6  bool `yaml:"noIPv6"`
}

func readInput(t testing.TB, file string) (*catalog.Snapshot, *nodev1.Subject, Options) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var in input
	if err := yaml.Unmarshal(content, &in); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(in.Subject)
	if err != nil {
		t.Fatal(err)
	}
	subject := new(nodev1.Subject)
	if err := protojson.Unmarshal(asJSON, subject); err != nil {
		t.Fatal(err)
	}
	o := testOptions
	o.NoIPv6 = in.NoIPv6
	return apply(t, open(t), in.Catalog), subject, o
}

func message(t testing.TB, r *distribute.Resource) proto.Message {
	t.Helper()
	m, err := (&anypb.Any{TypeUrl: r.Type, Value: r.Body}).UnmarshalNew()
	if err != nil {
		t.Fatal(r.Type, r.Name, err)
	}
	return m
}

// shown is what a person compares.
func shown(t testing.TB, all []*distribute.Resource) []byte {
	t.Helper()
	type line struct {
		Type, Name string
		Body       json.RawMessage
	}
	lines := make([]line, len(all))
	for n, r := range all {
		body, err := protojson.Marshal(message(t, r))
		if err != nil {
			t.Fatal(err)
		}
		var tight bytes.Buffer // protojson varies its spaces on purpose
		if err := json.Compact(&tight, body); err != nil {
			t.Fatal(err)
		}
		lines[n] = line{r.Type[strings.LastIndexByte(r.Type, '.')+1:], r.Name, tight.Bytes()}
	}
	out, err := json.MarshalIndent(lines, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

func inputs(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	return files
}

func TestProxyIsAsWritten(t *testing.T) {
	for _, file := range inputs(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			snapshot, subject, o := readInput(t, file)
			all, err := Proxy(snapshot, subject, o)
			if err != nil {
				t.Fatal(err)
			}
			got := shown(t, all)
			golden := strings.TrimSuffix(file, ".in.yaml") + ".want.json"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs; look at what -update makes of it", golden)
			}
			again, _, o2 := readInput(t, file) // another catalog, another replica
			other, err := Proxy(again, subject, o2)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range Diff("x", all, other) {
				t.Errorf("other bytes the second time: %s %s", c.Type, c.Name)
			}
		})
	}
}
