package catalog

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/legation-io/legation/api/v1alpha1"
)

// Service is where traffic for one host goes: its declaration joined with
// its endpoints and the SPIFFE IDs expected there. It is immutable.
type Service struct {
	Namespace, Name string
	// CreateRevision orders services by age, equally on all replicas.
	CreateRevision int64
	// Addresses are the virtual addresses.
	Addresses []netip.Addr
	Ports     []ServicePort
	// Problems say, in words, which endpoints take no traffic and why, and which
	// take it at another port than somebody wrote down.
	Problems []string

	memo Memo
}

// Host is "<name>.<namespace>".
func (s *Service) Host() string { return s.Name + "." + s.Namespace }

// Memo remembers what others derived from this service.
func (s *Service) Memo() *Memo { return &s.memo }

// Port finds a port by number.
func (s *Service) Port(number uint16) (ServicePort, bool) {
	for _, p := range s.Ports {
		if p.Port == number {
			return p, true
		}
	}
	return ServicePort{}, false
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name string
	Port uint16
	// Endpoints that are ready and whose identity is known, sorted.
	Endpoints []Endpoint
	// IDs are all SPIFFE IDs expected at the endpoints, sorted.
	IDs []string
	// IdentityHeaders: the endpoints' proxies say in HTTP headers who calls.
	IdentityHeaders bool
}

// Endpoint is an address at which one of IDs is expected.
type Endpoint struct {
	Address netip.Addr
	Port    uint16
	IDs     []string
	Node    string // where known
}

// endpointSource is one declared endpoint before ports are known.
type endpointSource struct {
	from      string // for problems
	addresses []string
	ids       []string
	node      string
	port      func(p corev1.ServicePort) (uint16, bool)
}

// joinService derives a Service. s is read only.
func (b *builder) joinService(o *object) *Service {
	svc := o.typed.(*corev1.Service)
	out := &Service{Namespace: svc.Namespace, Name: svc.Name, CreateRevision: o.createRevision}
	for _, a := range addressesOf(svc) {
		if addr, err := netip.ParseAddr(a); err == nil { // "None" is no address
			out.Addresses = append(out.Addresses, addr)
		}
	}
	sources := append(b.entrySources(svc, out), b.sliceSources(svc, out)...)
	for _, p := range svc.Spec.Ports {
		sp := ServicePort{Name: p.Name, Port: uint16(p.Port), IdentityHeaders: identityHeaders(svc, p)}
		for _, src := range sources {
			port, ok := src.port(p)
			if !ok {
				out.Problems = append(out.Problems, fmt.Sprintf("%s has no port for %s port %d", src.from, svc.Name, p.Port))
				continue
			}
			ids := src.ids
			if len(ids) == 0 {
				ids = annotatedIDs(svc)
			}
			if len(ids) == 0 {
				out.Problems = append(out.Problems, fmt.Sprintf("%s takes no traffic: nothing says which SPIFFE ID is expected there; "+
					"give it a serviceAccount, a targetRef of kind WorkloadIdentity, or the annotation %s", src.from, v1alpha1.AnnotationSPIFFEIDs))
				continue
			}
			for _, a := range src.addresses {
				addr, _ := netip.ParseAddr(a) // checked
				sp.Endpoints = append(sp.Endpoints, Endpoint{Address: addr, Port: port, IDs: ids, Node: src.node})
			}
		}
		slices.SortFunc(sp.Endpoints, compareEndpoints)
		sp.Endpoints = slices.CompactFunc(sp.Endpoints, func(x, y Endpoint) bool { return compareEndpoints(x, y) == 0 })
		for _, e := range sp.Endpoints {
			sp.IDs = append(sp.IDs, e.IDs...)
		}
		slices.Sort(sp.IDs)
		sp.IDs = slices.Compact(sp.IDs)
		out.Ports = append(out.Ports, sp)
	}
	slices.Sort(out.Problems)
	out.Problems = slices.Compact(out.Problems)
	return out
}

func compareEndpoints(a, b Endpoint) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Node, b.Node), slices.Compare(a.IDs, b.IDs))
}

// annotatedIDs are the SPIFFE IDs that an annotation lists, sorted.
func annotatedIDs(o metav1.Object) []string {
	list, ok := o.GetAnnotations()[v1alpha1.AnnotationSPIFFEIDs]
	if !ok {
		return nil
	}
	ids := splitIDs(list)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// identityHeaders reports whether a Service's annotation names a port.
func identityHeaders(svc *corev1.Service, p corev1.ServicePort) bool {
	list := svc.Annotations[v1alpha1.AnnotationIdentityHeaders]
	if list == "true" {
		return true
	}
	for one := range strings.SplitSeq(list, ",") {
		if one = strings.TrimSpace(one); one != "" && (one == p.Name || one == strconv.Itoa(int(p.Port))) {
			return true
		}
	}
	return false
}

// entrySources are the WorkloadEntries that the Service selects.
func (b *builder) entrySources(svc *corev1.Service, out *Service) []endpointSource {
	first, ok := firstPair(svc.Spec.Selector)
	if !ok {
		return nil
	}
	var sources []endpointSource
	b.next.entriesByLabel.under(svc.Namespace+sep+first+sep, func(name string, o *object) bool {
		w := o.typed.(*v1alpha1.WorkloadEntry)
		if !selects(svc.Spec.Selector, w.Spec.Labels) {
			return true
		}
		src := endpointSource{from: "WorkloadEntry " + name, addresses: []string{w.Spec.Address}, ids: annotatedIDs(w)}
		if w.Spec.ServiceAccount != "" {
			src.ids = []string{b.trustDomain.IDString() + "/ns/" + w.Namespace + "/sa/" + w.Spec.ServiceAccount}
		}
		src.port = func(p corev1.ServicePort) (uint16, bool) {
			if n, ok := w.Spec.Ports[p.Name]; ok {
				return uint16(n), true
			}
			if p.TargetPort.Type == intstr.String && p.TargetPort.StrVal != "" {
				n, ok := w.Spec.Ports[p.TargetPort.StrVal]
				return uint16(n), ok
			}
			n := uint16(p.Port)
			if p.TargetPort.IntVal != 0 {
				n = uint16(p.TargetPort.IntVal)
			}
			if len(w.Spec.Ports) > 0 {
				out.Problems = append(out.Problems, fmt.Sprintf("WorkloadEntry %s names the ports %s, and port %d of the Service has the name %q: "+
					"%d is connected to; in spec.ports write the name of the Service's port", name, strings.Join(sortedKeys(w.Spec.Ports), ", "), p.Port, p.Name, n))
			}
			return n, true
		}
		sources = append(sources, src)
		return true
	})
	return sources
}

// sliceSources are the ready endpoints of the Service's EndpointSlices.
func (b *builder) sliceSources(svc *corev1.Service, out *Service) []endpointSource {
	var sources []endpointSource
	b.next.slicesByService.under(svc.Namespace+"/"+svc.Name+sep, func(name string, o *object) bool {
		slice := o.typed.(*discoveryv1.EndpointSlice)
		for n, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			src := endpointSource{from: fmt.Sprintf("endpoint %d of EndpointSlice %s", n, name), addresses: e.Addresses, ids: annotatedIDs(slice)}
			if e.NodeName != nil {
				src.node = *e.NodeName
			}
			if ref := e.TargetRef; ref != nil && ref.Kind == kindIdentity.name {
				id, ok := b.referredID(slice.Namespace, ref.Name, src.node)
				if !ok {
					out.Problems = append(out.Problems, fmt.Sprintf("%s takes no traffic: WorkloadIdentity %s/%s that it refers to "+
						"does not exist, or has {node} in its SPIFFE ID and the endpoint no nodeName", src.from, slice.Namespace, ref.Name))
					continue
				}
				src.ids = []string{id}
			}
			src.port = func(p corev1.ServicePort) (uint16, bool) {
				for _, q := range slice.Ports {
					name := ""
					if q.Name != nil {
						name = *q.Name
					}
					if name == p.Name && q.Port != nil {
						return uint16(*q.Port), true
					}
				}
				return 0, false
			}
			sources = append(sources, src)
		}
		return true
	})
	return sources
}

// referredID is the SPIFFE ID of a WorkloadIdentity at a node.
func (b *builder) referredID(namespace, name, node string) (string, bool) {
	i, ok := b.next.identities.get(namespace + "/" + name)
	if !ok || i.pattern != nil && node == "" {
		return "", false
	}
	return i.SPIFFEID(node), true
}

// firstPair is the pair under which a selector is indexed.
func firstPair(selector map[string]string) (string, bool) {
	if len(selector) == 0 {
		return "", false
	}
	k := sortedKeys(selector)[0]
	return k + "=" + selector[k], true
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}
