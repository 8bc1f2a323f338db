package compile

import (
	"fmt"

	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
)

// Entries compiles the registration entries of a node for its trust stream,
// by name.
func Entries(s *catalog.Snapshot, node string) []*distribute.Resource {
	identities := s.IdentitiesFor(node)
	out := make([]*distribute.Resource, len(identities))
	for n, i := range identities {
		out[n] = entry(i, node)
	}
	return out
}

// EntryChanges compiles only the entries of a node that a change touched. The
// changes are for a scope that holds what Entries compiled before.
func EntryChanges(s *catalog.Snapshot, d *catalog.Delta, node string, scope distribute.Scope) []distribute.Change {
	var changes []distribute.Change
	for _, e := range d.Entries {
		for _, on := range e.Nodes {
			if on != node && on != everyNode {
				continue
			}
			change := distribute.Change{Scope: scope, Type: TypeEntry, Name: e.Name}
			if i, ok := s.Identity(e.Name); ok && i.On(node) {
				change.Resource = entry(i, node)
			}
			changes = append(changes, change)
			break
		}
	}
	return changes
}

const everyNode = "*"

// entry is compiled once for all nodes where it is equal on all of them.
func entry(i *catalog.Identity, node string) *distribute.Resource {
	key := entryKey{node}
	if i.SameOnEveryNode() {
		key.node = everyNode
	} else if i.Node == everyNode {
		return compileEntry(i, node) // one of as many as there are nodes: not kept
	}
	return i.Memo().Do(key, func() any { return compileEntry(i, key.node) }).(*distribute.Resource)
}

type entryKey struct{ node string }

func compileEntry(i *catalog.Identity, node string) *distribute.Resource {
	body, err := deterministic.Marshal(i.Entry(node))
	if err != nil {
		// Only invalid UTF-8 fails, and every string was checked.
		panic(fmt.Sprintf("compile: marshal entry %s: %v", i.Name, err))
	}
	return distribute.NewResource(TypeEntry, i.Name, body)
}
