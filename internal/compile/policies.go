package compile

import (
	"fmt"
	"slices"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/binding"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
)

// Policies compiles the policies of a node for its trust stream, by name:
// those that bind an identity which the node may hold.
func Policies(s *catalog.Snapshot, node string) []*distribute.Resource {
	var out []*distribute.Resource
	for _, p := range s.PoliciesFor(node) {
		// The same bytes for every node: compiled once.
		out = append(out, p.Memo().Do(policyKey{}, func() any { return compilePolicy(p) }).(*distribute.Resource))
	}
	return out
}

// PoliciesAffected reports whether a change may give a node other policies;
// false is certain. A tenant that changes policies without end costs the nodes
// that host it, and no other.
func PoliciesAffected(s *catalog.Snapshot, d *catalog.Delta, node string) bool {
	last := ""
	for _, name := range d.Policies { // sorted
		namespace, _, _ := strings.Cut(name, "/")
		if namespace != last && (namespace == binding.MeshNamespace || s.Hosts(node, namespace)) {
			return true
		}
		last = namespace
	}
	return slices.ContainsFunc(d.Entries, func(e catalog.EntryChange) bool {
		return slices.Contains(e.Nodes, node) || slices.Contains(e.Nodes, everyNode)
	})
}

type policyKey struct{}

func compilePolicy(p *catalog.Policy) *distribute.Resource {
	spec := p.Spec()
	m := &nodev1.Policy{Name: p.Name, Namespace: p.Namespace, Version: uint64(p.Revision), Subjects: spec.Subjects,
		Modules: spec.Modules, RegoVersion: 1, Data: spec.Data, Query: spec.Query}
	if spec.RegoVersion == "v0" {
		m.RegoVersion = 0
	}
	body, err := deterministic.Marshal(m)
	if err != nil {
		// Only invalid UTF-8 fails, and every string was checked.
		panic(fmt.Sprintf("compile: marshal policy %s: %v", p.Name, err))
	}
	return distribute.NewResource(TypePolicy, p.Name, body)
}
