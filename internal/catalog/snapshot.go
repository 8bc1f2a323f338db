package catalog

import (
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/api/v1alpha1"
)

// Snapshot is everything declared at one revision of the store, indexed. It
// is immutable and shares what did not change with the snapshots around it.
type Snapshot struct {
	// TrustDomain of everything in it.
	TrustDomain spiffeid.TrustDomain
	// Revision of the store that it reflects.
	Revision int64

	sequence uint64 // place in the change log
	guard    int64  // revision of the guard key; see apply.go

	namespaces  tree[struct{}]
	objects     tree[*object]      // <kind>/<namespace>/<name>
	quarantined tree[*Quarantined] // <kind>/<namespace>/<name>

	identities  tree[*Identity] // <namespace>/<name>
	byNode      tree[*Identity] // <node> 0 <namespace>/<name>
	byID        tree[*Identity] // <fixed ID> 0 <namespace>/<name>
	patterns    tree[*Identity] // <namespace>/<name>, those with an ID per node
	services    tree[*Service]  // <namespace>/<name>
	servicesFor tree[*Service]  // <ID> 0 <namespace>/<name>
	bySDSName   tree[*Identity] // <SDS name> 0 <namespace>/<name>
	byAddress   tree[*Service]  // <virtual address> 0 <namespace>/<name>
	counts      tree[int]       // "node/<node>" identities, "<kind>/<namespace>" resources

	entriesByLabel  tree[*object]  // <namespace> 0 <k=v> 0 <name>: WorkloadEntries
	servicesByLabel tree[*object]  // <namespace> 0 <first k=v of the selector> 0 <name>
	slicesByService tree[*object]  // <namespace>/<service> 0 <name>
	servicesByRef   tree[struct{}] // <namespace>/<identity> 0 <service>
	policies        tree[*Policy]  // <namespace>/<name>

	copying      sync.Mutex // a tree must not be copied twice at once
	servicesMemo *Memo      // carried from snapshot to snapshot while no service changes
}

// Quarantined is a stored value that could not be read. Where an older
// version of it was read before, that one stays in force.
type Quarantined struct {
	Kind, Namespace, Name string
	Revision              int64
	Reason                string
}

func newSnapshot(td spiffeid.TrustDomain) *Snapshot {
	return &Snapshot{
		TrustDomain: td, servicesMemo: new(Memo), namespaces: newTree[struct{}](), objects: newTree[*object](), quarantined: newTree[*Quarantined](),
		identities: newTree[*Identity](), byNode: newTree[*Identity](), byID: newTree[*Identity](), patterns: newTree[*Identity](),
		services: newTree[*Service](), servicesFor: newTree[*Service](), bySDSName: newTree[*Identity](), byAddress: newTree[*Service](), counts: newTree[int](),
		entriesByLabel:  newTree[*object](),
		servicesByLabel: newTree[*object](), slicesByService: newTree[*object](), servicesByRef: newTree[struct{}](), policies: newTree[*Policy](),
	}
}

// copy is for one builder. Run and Apply may copy one snapshot at once.
func (s *Snapshot) copy() *Snapshot {
	s.copying.Lock()
	defer s.copying.Unlock()
	return &Snapshot{
		TrustDomain: s.TrustDomain, Revision: s.Revision, sequence: s.sequence, guard: s.guard, servicesMemo: s.servicesMemo,
		namespaces: s.namespaces.copy(), objects: s.objects.copy(), quarantined: s.quarantined.copy(),
		identities: s.identities.copy(), byNode: s.byNode.copy(), byID: s.byID.copy(), patterns: s.patterns.copy(),
		services: s.services.copy(), servicesFor: s.servicesFor.copy(), bySDSName: s.bySDSName.copy(), byAddress: s.byAddress.copy(), counts: s.counts.copy(),
		entriesByLabel:  s.entriesByLabel.copy(),
		servicesByLabel: s.servicesByLabel.copy(), slicesByService: s.slicesByService.copy(), servicesByRef: s.servicesByRef.copy(), policies: s.policies.copy(),
	}
}

// ServicesMemo remembers what others derived from all services together; it
// is carried from snapshot to snapshot while no service changes.
func (s *Snapshot) ServicesMemo() *Memo { return s.servicesMemo }

// Identity finds a declared identity by "<namespace>/<name>".
func (s *Snapshot) Identity(name string) (*Identity, bool) { return s.identities.get(name) }

// IdentitiesFor are the identities that a node may hold, by name.
func (s *Snapshot) IdentitiesFor(node string) []*Identity {
	var ids []*Identity
	collect := func(_ string, i *Identity) bool { ids = append(ids, i); return true }
	if node != v1alpha1.EveryNode {
		s.byNode.under(node+sep, collect)
	}
	s.byNode.under(v1alpha1.EveryNode+sep, collect)
	slices.SortFunc(ids, func(a, b *Identity) int { return strings.Compare(a.Name, b.Name) })
	return ids
}

// Hosts reports whether the node may hold an identity of the namespace.
func (s *Snapshot) Hosts(node, namespace string) bool {
	found := false
	look := func(_ string, i *Identity) bool { found = i.Namespace == namespace; return !found }
	if node != v1alpha1.EveryNode {
		s.byNode.under(node+sep, look)
	}
	if !found {
		s.byNode.under(v1alpha1.EveryNode+sep, look)
	}
	return found
}

// EachIdentity calls f for every identity in order of name until it says false.
func (s *Snapshot) EachIdentity(f func(*Identity) bool) {
	s.identities.under("", func(_ string, i *Identity) bool { return f(i) })
}

// EntriesFor are the registration entries of a node, by name: templates
// resolved, selectors sorted, ports filled in.
func (s *Snapshot) EntriesFor(node string) []*nodev1.Entry {
	ids := s.IdentitiesFor(node)
	entries := make([]*nodev1.Entry, len(ids))
	for n, i := range ids {
		entries[n] = i.Entry(node)
	}
	return entries
}

// EntryByName is one registration entry as a node sees it; false when it
// does not exist or is not for that node.
func (s *Snapshot) EntryByName(node, name string) (*nodev1.Entry, bool) {
	i, ok := s.identities.get(name)
	if !ok || !i.On(node) {
		return nil, false
	}
	return i.Entry(node), true
}

// Service finds a service by its name, or by "<name>.<namespace>" as a
// program would say it, ".svc" and ".svc.cluster.local" included; namespace is
// for hosts that name none.
func (s *Snapshot) Service(namespace, host string) (*Service, bool) {
	host = strings.TrimSuffix(strings.TrimSuffix(host, ".cluster.local"), ".svc")
	name, ns, ok := strings.Cut(host, ".")
	if !ok {
		ns = namespace
	}
	return s.services.get(ns + "/" + name)
}

// Services are all services by namespace and name.
func (s *Snapshot) Services() []*Service {
	all := make([]*Service, 0, s.services.len())
	s.services.under("", func(_ string, v *Service) bool { all = append(all, v); return true })
	return all
}

// Quarantined are the stored values that could not be read.
func (s *Snapshot) Quarantined() []*Quarantined {
	all := make([]*Quarantined, 0, s.quarantined.len())
	s.quarantined.under("", func(_ string, q *Quarantined) bool { all = append(all, q); return true })
	return all
}

// Counts are the numbers of declared resources by kind.
func (s *Snapshot) Counts() map[string]int {
	counts := make(map[string]int, len(kinds))
	for _, k := range kinds {
		counts[k.name] = 0
		s.counts.under(k.plural+"/", func(_ string, n int) bool { counts[k.name] += n; return true })
	}
	return counts
}
