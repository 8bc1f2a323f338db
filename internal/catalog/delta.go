package catalog

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Delta is what changed between two snapshots.
type Delta struct {
	// Entries that came, went or differ, by name.
	Entries []EntryChange
	// Services that came, went or differ: "<namespace>/<name>", sorted.
	Services []string
	// Policies that came, went or differ: "<namespace>/<name>", sorted.
	Policies []string
}

// EntryChange names an entry and the nodes whose view of it may differ:
// those that it was on and those that it is on now. v1alpha1.EveryNode
// stands for all.
type EntryChange struct {
	Name  string
	Nodes []string
}

func compareBound(a, b boundPort) int {
	return cmp.Or(strings.Compare(a.id, b.id), strings.Compare(a.node, b.node), cmp.Compare(a.port, b.port), compareBool(a.headers, b.headers))
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func sameService(a, b *Service) bool {
	return a.CreateRevision == b.CreateRevision && slices.EqualFunc(a.Addresses, b.Addresses, func(x, y netip.Addr) bool { return x == y }) &&
		slices.Equal(a.Problems, b.Problems) && slices.EqualFunc(a.Ports, b.Ports, func(x, y ServicePort) bool {
		return x.Name == y.Name && x.Port == y.Port && x.IdentityHeaders == y.IdentityHeaders && slices.EqualFunc(x.Endpoints, y.Endpoints, func(e, f Endpoint) bool {
			return compareEndpoints(e, f) == 0
		})
	})
}

func (b *builder) delta() *Delta {
	names := maps.Clone(b.entries)
	maps.Copy(names, b.identities)
	nodes := make(map[string][]string, len(names))
	for name := range names {
		nodes[name] = b.moved[name]
		if i, ok := b.next.identities.get(name); ok {
			nodes[name] = append(nodes[name], i.Node)
		}
	}
	return newDelta(nodes, b.changed, b.policies)
}

// merge is the sum of changes, in any order.
func merge(changes ...*Delta) *Delta {
	nodes, services, policies := map[string][]string{}, map[string]bool{}, map[string]bool{}
	for _, d := range changes {
		for _, e := range d.Entries {
			nodes[e.Name] = append(nodes[e.Name], e.Nodes...)
		}
		for _, s := range d.Services {
			services[s] = true
		}
		for _, p := range d.Policies {
			policies[p] = true
		}
	}
	return newDelta(nodes, services, policies)
}

func newDelta(nodes map[string][]string, services, policies map[string]bool) *Delta {
	d := &Delta{Services: sortedKeys(services), Policies: sortedKeys(policies)}
	for _, name := range sortedKeys(nodes) {
		slices.Sort(nodes[name])
		d.Entries = append(d.Entries, EntryChange{Name: name, Nodes: slices.Compact(nodes[name])})
	}
	return d
}

// diff compares two snapshots value by value; it costs their size.
func diff(from, to *Snapshot) *Delta {
	nodes := map[string][]string{}
	services, policies := map[string]bool{}, map[string]bool{}
	compare := func(a, b *Snapshot) {
		a.identities.under("", func(name string, i *Identity) bool {
			if other, ok := b.identities.get(name); !ok || other != i {
				nodes[name] = append(nodes[name], i.Node)
			}
			return true
		})
		a.services.under("", func(name string, s *Service) bool {
			if other, ok := b.services.get(name); !ok || other != s {
				services[name] = true
			}
			return true
		})
		a.policies.under("", func(name string, p *Policy) bool {
			if other, ok := b.policies.get(name); !ok || other != p {
				policies[name] = true
			}
			return true
		})
	}
	compare(from, to)
	compare(to, from)
	return newDelta(nodes, services, policies)
}

// changeLog keeps the last changes, so that a consumer that is a little
// behind pays only for what changed.
type changeLog struct {
	ring [1024]*Delta // by sequence % len; the change that led to that snapshot
}

func (l *changeLog) add(sequence uint64, d *Delta) { l.ring[sequence%uint64(len(l.ring))] = d }

// between merges the changes after from up to to; false when some are
// forgotten.
func (l *changeLog) between(from, to, newest uint64) (*Delta, bool) {
	if from > to || newest-from > uint64(len(l.ring)) {
		return nil, false
	}
	changes := make([]*Delta, 0, to-from)
	for s := from + 1; s <= to; s++ {
		changes = append(changes, l.ring[s%uint64(len(l.ring))])
	}
	if len(changes) == 1 {
		return changes[0], true
	}
	return merge(changes...), true
}
