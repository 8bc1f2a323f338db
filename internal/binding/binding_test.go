package binding_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/binding"
)

const td = "spiffe://example.org/"

func TestAPolicyBindsItsOwnNamespace(t *testing.T) {
	for _, tt := range []struct {
		name, namespace string
		subjects        []string
		identity, id    string
		want            bool
	}{
		{"every identity of its namespace", "shop", nil, "shop", td + "ns/shop/sa/web", true},
		{"nobody of another namespace", "shop", nil, "other", td + "ns/other/sa/web", false},
		{"nobody of another namespace, whatever it names", "shop", []string{td + "ns/other/sa/web", td + "**"}, "other", td + "ns/other/sa/web", false},
		{"an identity of its namespace under another path", "shop", []string{td + "vm/*"}, "shop", td + "vm/1", true},
		{"everybody, from the mesh's namespace", binding.MeshNamespace, nil, "other", td + "ns/other/sa/web", true},
		{"whom it names, from the mesh's namespace", binding.MeshNamespace, []string{td + "ns/other/sa/*"}, "other", td + "ns/other/sa/web", true},
		{"nobody else", binding.MeshNamespace, []string{td + "ns/other/sa/*"}, "shop", td + "ns/shop/sa/web", false},
		{"one identity", "shop", []string{td + "ns/shop/sa/web"}, "shop", td + "ns/shop/sa/web", true},
		{"not its neighbour", "shop", []string{td + "ns/shop/sa/web"}, "shop", td + "ns/shop/sa/web2", false},
		{"not one that is longer", "shop", []string{td + "ns/shop/sa/*"}, "shop", td + "ns/shop/sa/web/x", false},
		{"not one that is shorter", "shop", []string{td + "ns/shop/sa/*"}, "shop", td + "ns/shop/sa", false},
		{"everything below", "shop", []string{td + "ns/shop/**"}, "shop", td + "ns/shop/sa/web/x", true},
		{"not the folder itself", "shop", []string{td + "ns/shop/**"}, "shop", td + "ns/shop", false},
		{"a dot is a dot", "shop", []string{td + "ns/shop/sa/a.b"}, "shop", td + "ns/shop/sa/axb", false}, // A40
	} {
		if got := binding.Binds(tt.namespace, tt.subjects, tt.identity, tt.id); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestSubjectsAreJudged(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	for _, good := range []string{td + "ns/shop/sa/web", td + "ns/shop/sa/*", td + "ns/*/sa/web", td + "**", td + "ns/shop/**", td + "*"} {
		if err := binding.Check(good, domain); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "*", "spiffe://example.org", td, "spiffe://other.org/a", td + "a*", td + "**/a", td + "a//b", td + "../a", td + ".*", td + "a?", td + "[a]", td + strings.Repeat("a", 2048)} {
		if err := binding.Check(bad, domain); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzBinds(f *testing.F) {
	f.Add(td+"ns/*/sa/**", td+"ns/a/sa/b")
	f.Fuzz(func(t *testing.T, pattern, id string) {
		if !strings.Contains(pattern, "*") && binding.Binds("a", []string{pattern}, "a", id) != (pattern == id) {
			t.Fatalf("%q and %q", pattern, id)
		}
	})
}
