package catalog

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/legation-io/legation/api/v1alpha1"
)

// builder makes the next snapshot out of changes to objects. What is derived
// is derived again only where a change touches it.
type builder struct {
	trustDomain spiffeid.TrustDomain
	next        *Snapshot

	identities map[string]bool     // names whose declaration changed
	services   map[string]bool     // names to join again
	entries    map[string]bool     // names whose ports may have changed
	moved      map[string][]string // nodes that identities were on before
	changed    map[string]bool     // services that differ now
	policies   map[string]bool     // policies that differ now
}

func newBuilder(from *Snapshot) *builder {
	return &builder{trustDomain: from.TrustDomain, next: from.copy(), identities: map[string]bool{},
		services: map[string]bool{}, entries: map[string]bool{}, moved: map[string][]string{}, changed: map[string]bool{}, policies: map[string]bool{}}
}

// put replaces one object; a nil object removes it.
func (b *builder) put(id string, o *object) {
	old, _ := b.next.objects.get(id)
	if o != nil {
		b.next.objects.set(id, o)
		b.count(id[:strings.LastIndexByte(id, '/')], 1)
	} else {
		b.next.objects.delete(id)
	}
	if old != nil {
		b.count(id[:strings.LastIndexByte(id, '/')], -1)
	}
	for _, x := range []*object{old, o} {
		if x == nil {
			continue
		}
		present := x == o
		switch x.kind {
		case kindIdentity:
			b.identities[x.typed.GetNamespace()+"/"+x.typed.GetName()] = true
		case kindService:
			b.indexService(x, present)
		case kindWorkloadEntry:
			b.indexEntry(x, present)
		case kindEndpointSlice:
			b.indexSlice(x, present)
		case kindPolicy:
			p := newPolicy(x)
			b.policies[p.Name] = true
			index(b.next.policies, p.Name, p, present)
		}
	}
}

func (b *builder) count(key string, change int) {
	n, _ := b.next.counts.get(key)
	if n += change; n != 0 {
		b.next.counts.set(key, n)
	} else {
		b.next.counts.delete(key)
	}
}

func index[T any](t tree[T], key string, value T, present bool) {
	if present {
		t.set(key, value)
	} else {
		t.delete(key)
	}
}

func (b *builder) indexService(o *object, present bool) {
	s := o.typed.(*corev1.Service)
	b.services[s.Namespace+"/"+s.Name] = true
	if first, ok := firstPair(s.Spec.Selector); ok {
		index(b.next.servicesByLabel, s.Namespace+sep+first+sep+s.Name, o, present)
	}
}

func (b *builder) indexEntry(o *object, present bool) {
	w := o.typed.(*v1alpha1.WorkloadEntry)
	for k, v := range w.Spec.Labels {
		pair := w.Namespace + sep + k + "=" + v + sep
		index(b.next.entriesByLabel, pair+w.Name, o, present)
		b.next.servicesByLabel.under(pair, func(name string, s *object) bool {
			if selects(s.typed.(*corev1.Service).Spec.Selector, w.Spec.Labels) {
				b.services[w.Namespace+"/"+name] = true
			}
			return true
		})
	}
}

func (b *builder) indexSlice(o *object, present bool) {
	s := o.typed.(*discoveryv1.EndpointSlice)
	service := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
	index(b.next.slicesByService, service+sep+s.Name, o, present)
	b.services[service] = true
}

// finish derives what follows and returns the snapshot and what changed.
func (b *builder) finish() (*Snapshot, *Delta) {
	for name := range b.identities {
		b.finishIdentity(name)
	}
	for name := range b.services {
		b.finishService(name)
	}
	for name := range b.entries {
		b.finishPorts(name)
	}
	if len(b.changed) > 0 {
		b.next.servicesMemo = new(Memo)
	}
	return b.next, b.delta()
}

func (b *builder) finishIdentity(name string) {
	namespace, short, _ := strings.Cut(name, "/")
	if old, ok := b.next.identities.get(name); ok {
		b.count("node/"+old.Node, -1)
		b.moved[name] = append(b.moved[name], old.Node)
		b.setIdentity(old, false)
	}
	if o, ok := b.next.objects.get(objectID(kindIdentity, namespace, short)); ok {
		i := newIdentity(b.trustDomain, o)
		b.count("node/"+i.Node, 1)
		b.setIdentity(i, true)
		b.entries[name] = true
	}
	b.next.servicesByRef.under(name+sep, func(service string, _ struct{}) bool {
		b.services[namespace+"/"+service] = true
		return true
	})
}

func (b *builder) setIdentity(i *Identity, present bool) {
	index(b.next.identities, i.Name, i, present)
	index(b.next.byNode, i.Node+sep+i.Name, i, present)
	for _, n := range i.SDSNames {
		index(b.next.bySDSName, n+sep+i.Name, i, present)
	}
	if i.pattern != nil {
		index(b.next.patterns, i.Name, i, present)
	} else {
		index(b.next.byID, i.fixed+sep+i.Name, i, present)
	}
}

func (b *builder) finishService(name string) {
	namespace, short, _ := strings.Cut(name, "/")
	old, _ := b.next.services.get(name)
	var now *Service
	if o, ok := b.next.objects.get(objectID(kindService, namespace, short)); ok {
		now = b.joinService(o)
		if old != nil && sameService(old, now) {
			b.indexRefs(namespace, short)
			return
		}
	}
	if old == nil && now == nil {
		return // only an EndpointSlice without its Service
	}
	b.changed[name] = true
	b.indexRefs(namespace, short)
	for _, s := range []*Service{old, now} {
		if s == nil {
			continue
		}
		index(b.next.services, name, s, s == now)
		for _, a := range s.Addresses {
			index(b.next.byAddress, a.String()+sep+name, s, s == now)
		}
		for _, p := range s.Ports {
			for _, id := range p.IDs {
				index(b.next.servicesFor, id+sep+name, s, s == now)
				b.touch(id, namespace)
			}
		}
	}
}

// indexRefs remembers which identities a service's endpoints refer to, so
// that a change of one finds it. A stale pair costs one joining too many.
func (b *builder) indexRefs(namespace, service string) {
	b.next.slicesByService.under(namespace+"/"+service+sep, func(_ string, o *object) bool {
		for _, e := range o.typed.(*discoveryv1.EndpointSlice).Endpoints {
			if e.TargetRef != nil && e.TargetRef.Kind == kindIdentity.name {
				b.next.servicesByRef.set(namespace+"/"+e.TargetRef.Name+sep+service, struct{}{})
			}
		}
		return true
	})
}

// touch marks the entries that an ID belongs to. A service gives ports to
// identities of its own namespace only: another's service must not open
// their ports (A47).
func (b *builder) touch(id, namespace string) {
	mark := func(_ string, i *Identity) bool {
		if i.Namespace == namespace && i.Has(id) {
			b.entries[i.Name] = true
		}
		return true
	}
	b.next.byID.under(id+sep, mark)
	b.next.patterns.under(namespace+"/", mark)
}

func (b *builder) finishPorts(name string) {
	i, ok := b.next.identities.get(name)
	if !ok {
		return
	}
	ports := b.portsOf(i)
	if slices.Equal(ports, i.ports) {
		if !b.identities[name] {
			delete(b.entries, name)
		}
		return
	}
	if !b.identities[name] { // published before: replace, never change
		fresh := newIdentity(b.trustDomain, i.object)
		fresh.ports = ports
		b.moved[name] = append(b.moved[name], i.Node)
		b.setIdentity(fresh, true)
		return
	}
	i.ports = ports
}

func (b *builder) portsOf(i *Identity) []boundPort {
	var ports []boundPort
	collect := func(s *Service) {
		if s.Namespace != i.Namespace {
			return
		}
		for _, p := range s.Ports {
			for _, e := range p.Endpoints {
				for _, id := range e.IDs {
					if i.Has(id) {
						ports = append(ports, boundPort{id, e.Node, e.Port, p.IdentityHeaders})
					}
				}
			}
		}
	}
	if i.pattern != nil {
		b.next.services.under(i.Namespace+"/", func(_ string, s *Service) bool { collect(s); return true })
	} else {
		b.next.servicesFor.under(i.fixed+sep, func(_ string, s *Service) bool { collect(s); return true })
	}
	slices.SortFunc(ports, compareBound)
	return slices.Compact(ports)
}
