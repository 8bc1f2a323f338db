package admin

import (
	"strings"
	"testing"
	"time"

	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
)

// A control plane that was started again has heard of nothing behind its
// nodes: that a node is away is all it knows, and it has to say so.
func TestANodeThatIsAwayIsMissingFromARevocation(t *testing.T) {
	o := newOffice(t)
	for _, name := range []string{"here", "away", "banned", "expired"} {
		admitted, err := o.p.Registry.Admit(t.Context(), "join_token", attestnode.Claim{Node: name})
		must(t, err)
		until := o.clock.Now().Add(time.Hour)
		if name == "expired" {
			until = o.clock.Now().Add(-time.Hour)
		}
		_, err = o.p.Registry.Issued(t.Context(), admitted, "", "5e71a1", until)
		must(t, err)
	}
	_, err := o.p.Registry.Ban(t.Context(), "banned", "stolen", "test")
	must(t, err)
	o.here = []Presence{{Node: "here"}}
	eventually(t, "the registry has seen all four", func() bool {
		records, _, _ := o.p.Registry.State()
		return len(records) == 4 && records["banned"].Banned && records["away"].Serial != "" && records["expired"].Serial != ""
	})
	serial := o.issue(ca.ProfileWorkload, "spiffe://example.org/ns/default/sa/web", "default", "here")
	revocation, err := o.p.Authority.Revoke(t.Context(), ca.RevokeRequest{Serial: serial})
	must(t, err)
	p := o.progress(revocation)
	if got := strings.Join(p.Missing, ", "); got != "away (the node is away)" || p.Unknown != 1 {
		t.Errorf("missing %q and %d unknown, want the one that is away alone", got, p.Unknown)
	}
	if named := o.away([]string{"away/envoy/1"}); len(named) != 0 {
		t.Errorf("%v is named though one of its subscribers is", named)
	}
}
