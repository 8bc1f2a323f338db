package compile

import (
	"regexp"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Infrastructure is no peer of workloads: the certificate of an agent, of
// which every node has one, opens no workload's port.
func TestWorkloadsTakeNoAgentAndNoServerAsPeer(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	wanted := regexp.MustCompile("^(?:" + workloads(td) + ")$") // Envoy wants the whole name to match
	for _, row := range []struct {
		id string
		ok bool
	}{
		{"spiffe://example.org/ns/default/sa/app", true},
		{"spiffe://example.org/ns/legation/sa/legation", true},
		{"spiffe://example.org/l", true},
		{"spiffe://example.org/lega", true},
		{"spiffe://example.org/legatio/n", true},
		{"spiffe://example.org/legations/agent/n1", true},
		{"spiffe://example.org/legation.x/agent", true},
		{"spiffe://example.org/Legation/agent", true},
		{"spiffe://example.org/x/legation/agent/n1", true},
		{"spiffe://example.org/legation", false},
		{"spiffe://example.org/legation/", false},
		{"spiffe://example.org/legation/server", false},
		{"spiffe://example.org/legation/agent/n1", false},
		{"spiffe://example.org/legation/nobody", false},
		{"spiffe://example.org/", false},
		{"spiffe://example.org", false},
		{"spiffe://exampleXorg/ns/default/sa/app", false},
		{"spiffe://other.org/ns/default/sa/app", false},
		{"spiffe://other.org/spiffe://example.org/ns/default/sa/app", false},
	} {
		if got := wanted.MatchString(row.id); got != row.ok {
			t.Errorf("%s: a peer: %v, want %v", row.id, got, row.ok)
		}
	}
}
