package server

import (
	"context"
	"slices"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/catalog"
)

// maxCandidates bounds an answer to "why".
const maxCandidates = 10

// explain says which declared entries come near: of this node those that lack
// few of the selectors asked for, or that have the SDS name. An entry of
// another node is told only when the node is all that is wrong, or its very
// SDS name was asked for: a node must not be able to look around.
func (s *server) explain(_ context.Context, node string, req *nodev1.ExplainRequest) ([]*nodev1.Candidate, error) {
	snapshot, _ := s.catalog.Snapshot()
	has := map[string]bool{}
	for _, sel := range req.Selectors {
		has[sel] = true
	}
	var list []*nodev1.Candidate
	snapshot.EachIdentity(func(i *catalog.Identity) bool {
		entry := i.Entry(node)
		c := &nodev1.Candidate{Entry: entry.Name, SpiffeId: entry.SpiffeId, Node: i.Node}
		if req.SdsName != "" && entry.SpiffeId != req.SdsName && !slices.Contains(entry.SdsNames, req.SdsName) {
			return true
		}
		matched := 0
		for _, sel := range entry.Selectors {
			if has[sel] {
				matched++
			} else {
				c.Missing = append(c.Missing, sel)
			}
		}
		if req.SdsName == "" && (matched == 0 || !i.On(node) && len(c.Missing) > 0) {
			return true
		}
		if !i.On(node) {
			c.Missing = nil
		}
		c.Reason = reason(i, node, req.Selectors, c.Missing)
		list = append(list, c)
		return true
	})
	slices.SortStableFunc(list, func(a, b *nodev1.Candidate) int { return len(a.Missing) - len(b.Missing) })
	return list[:min(len(list), maxCandidates)], nil
}

func reason(i *catalog.Identity, node string, has, missing []string) string {
	var parts []string
	if !i.On(node) {
		parts = append(parts, "it is parented to node "+i.Node+", not "+node+"; set spec.node to \""+node+"\" or \"*\"")
	}
	if len(missing) > 0 {
		parts = append(parts, workload.Lacks(has, missing))
	}
	if len(parts) == 0 {
		return "it matches"
	}
	return strings.Join(parts, "; ")
}
