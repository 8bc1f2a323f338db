package svid

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
)

// index finds the entries that match a caller: they are filed under the one
// of their selectors that the fewest entries share.
type index struct {
	view  *upstream.View
	by    map[workload.Selector][]*nodev1.Entry
	want  workload.Want
	count int
	// ownIPs: some entry includes the machine's addresses.
	ownIPs bool
}

func newIndex(view *upstream.View) *index {
	x := &index{view: view, by: map[workload.Selector][]*nodev1.Entry{}, count: len(view.Entries)}
	shared := map[workload.Selector]int{}
	for _, e := range view.Entries {
		x.ownIPs = x.ownIPs || e.IncludeOwnIp
		for _, s := range e.Selectors {
			shared[s]++
			switch {
			case strings.HasPrefix(s, "unix:sha256:"):
				x.want.SHA256 = true
			case strings.HasPrefix(s, "unix:user:"), strings.HasPrefix(s, "unix:group:"), strings.HasPrefix(s, "unix:supplementary_group:"):
				x.want.Names = true
			}
		}
	}
	for _, e := range view.Entries {
		if len(e.Selectors) == 0 {
			continue // matches nobody
		}
		rarest := slices.MinFunc(e.Selectors, func(a, b string) int { return shared[a] - shared[b] })
		x.by[rarest] = append(x.by[rarest], e)
	}
	return x
}

// with is the same index under a View with the same entries.
func (x *index) with(view *upstream.View) *index {
	c := *x
	c.view = view
	return &c
}

// sorted is has itself if it is sorted, as attestation gives it.
func sorted(has []workload.Selector) []workload.Selector {
	if slices.IsSorted(has) {
		return has
	}
	return slices.Sorted(slices.Values(has))
}

func (x *index) match(has []workload.Selector) []*nodev1.Entry {
	has = sorted(has)
	var all []*nodev1.Entry
	for i, s := range has {
		if i > 0 && has[i-1] == s {
			continue
		}
		for _, e := range x.by[s] {
			if len(lacks(has, e.Selectors)) == 0 {
				all = append(all, e)
			}
		}
	}
	slices.SortFunc(all, func(a, b *nodev1.Entry) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// lacks returns which selectors of want the sorted has does not have.
func lacks(has, want []workload.Selector) []workload.Selector {
	var missing []workload.Selector
	for _, w := range want {
		if _, ok := slices.BinarySearch(has, w); !ok {
			missing = append(missing, w)
		}
	}
	return missing
}

const nearest = 3

// Near lists the entries of this node that come nearest to the selectors,
// those that match left out.
func (m *Manager) Near(selectors []workload.Selector) []*nodev1.Candidate {
	return m.index.Get().near(selectors)
}

func (x *index) near(has []workload.Selector) []*nodev1.Candidate {
	has = sorted(has)
	var all []*nodev1.Candidate
	for _, e := range x.view.Entries {
		missing := lacks(has, e.Selectors)
		if len(missing) == 0 || len(missing) == len(e.Selectors) && len(e.Selectors) > 1 {
			continue // matches, or shares nothing
		}
		all = append(all, &nodev1.Candidate{
			Entry: e.Name, SpiffeId: e.SpiffeId, Missing: missing,
			Reason: workload.Lacks(has, missing),
		})
	}
	slices.SortFunc(all, func(a, b *nodev1.Candidate) int {
		if d := len(a.Missing) - len(b.Missing); d != 0 {
			return d
		}
		return strings.Compare(a.Entry, b.Entry)
	})
	return all[:min(len(all), nearest)]
}

// WhyNot says in words which entries come nearest to selectors that nothing
// matches, asking the control plane where this node knows of none.
func (m *Manager) WhyNot(ctx context.Context, selectors []workload.Selector) string {
	return m.near(ctx, m.index.Get(), selectors)
}

// near says in words which entries come near, here or, if none does, by what
// the control plane knows.
func (m *Manager) near(ctx context.Context, x *index, selectors []workload.Selector) string {
	candidates := x.near(selectors)
	if len(candidates) == 0 && x.view.Connected && m.explain.Allow() {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if r, err := m.p.Signer.Explain(ctx, &nodev1.ExplainRequest{TrustDomain: x.view.TrustDomain, Selectors: selectors}); err == nil {
			candidates = r.Candidates[:min(len(r.Candidates), nearest)]
		}
	}
	if len(candidates) == 0 {
		return fmt.Sprintf("none of the %d entries of this node comes near; declare a WorkloadIdentity with selectors this process has (legation why --pid shows them)", x.count)
	}
	var parts []string
	for _, c := range candidates {
		parts = append(parts, fmt.Sprintf("entry %s (%s): %s", c.Entry, c.SpiffeId, c.Reason))
	}
	return strings.Join(parts, "; ")
}
