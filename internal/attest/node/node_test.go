package node

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"web-1":                  true,
		"web-1.example.com":      true,
		"Node_7":                 true,
		"":                       false,
		".":                      false,
		"..":                     false,
		"a/b":                    false,
		"a%2fb":                  false,
		"a b":                    false,
		"ü":                      false,
		"a\x00b":                 false,
		strings.Repeat("a", 254): false,
	} {
		id, err := ID(td, name)
		if (err == nil) != ok {
			t.Errorf("ID(%q): %v; want ok %v", name, err, ok)
			continue
		}
		if !ok {
			continue
		}
		back, err := NameOf(td, id)
		if err != nil || back != name {
			t.Errorf("NameOf(%s) = %q, %v; want %q", id, back, err, name)
		}
	}
}

func TestNameOfRefusesEveryOtherIdentity(t *testing.T) {
	for _, id := range []string{
		"spiffe://example.org/legation/server",
		"spiffe://example.org/legation/agent",
		"spiffe://example.org/legation/agent/a/b",
		"spiffe://example.org/ns/default/sa/web",
		"spiffe://other.org/legation/agent/web-1",
	} {
		if name, err := NameOf(td, spiffeid.RequireFromString(id)); err == nil {
			t.Errorf("%s is taken for the agent %q", id, name)
		}
	}
}
