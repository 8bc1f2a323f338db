package catalog

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/api/v1alpha1"
)

// Identity is a declared WorkloadIdentity with what follows from the rest of
// the catalog. It is immutable; a change makes another.
type Identity struct {
	// Name is "<namespace>/<name>".
	Name string
	// Namespace of the declaration.
	Namespace string
	// Node may hold it; v1alpha1.EveryNode is every node.
	Node string
	// Selectors, sorted; a caller must have all of them.
	Selectors []string
	// SDSNames are further names for SDS.
	SDSNames []string

	trustDomain spiffeid.TrustDomain
	declared    *v1alpha1.WorkloadIdentity
	object      *object
	ttl, jwtTTL time.Duration
	pattern     *regexp.Regexp // matches its IDs, where they differ by node
	fixed       string         // its ID, where it does not
	ports       []boundPort    // sorted
	memo        Memo
}

// boundPort is an application port of a service that the ID is an endpoint
// of; node is empty where the endpoint names none.
type boundPort struct {
	id, node string
	port     uint16
	headers  bool // of identities
}

func newIdentity(td spiffeid.TrustDomain, o *object) *Identity {
	w := o.typed.(*v1alpha1.WorkloadIdentity)
	i := &Identity{
		Name: w.Namespace + "/" + w.Name, Namespace: w.Namespace, Node: w.Spec.Node,
		Selectors: slices.Sorted(slices.Values(w.Spec.Selectors)), SDSNames: w.Spec.SDSNames,
		trustDomain: td, declared: w, object: o,
	}
	i.ttl, _ = time.ParseDuration(w.Spec.TTL) // checked; empty is zero
	i.jwtTTL, _ = time.ParseDuration(w.Spec.JWTTTL)
	if w.Spec.Node == v1alpha1.EveryNode && strings.Contains(templateOf(w), "{node}") {
		const mark = "\x00"
		quoted := regexp.QuoteMeta(resolve(td, w, mark))
		i.pattern = regexp.MustCompile("^" + strings.ReplaceAll(quoted, mark, "[a-zA-Z0-9._-]+") + "$")
	} else {
		i.fixed = resolve(td, w, w.Spec.Node)
	}
	return i
}

// On reports whether a node may hold this identity.
func (i *Identity) On(node string) bool { return i.Node == v1alpha1.EveryNode || i.Node == node }

// SameOnEveryNode reports whether its entry is equal on all nodes.
func (i *Identity) SameOnEveryNode() bool {
	return i.Node == v1alpha1.EveryNode && i.pattern == nil &&
		!slices.ContainsFunc(i.ports, func(p boundPort) bool { return p.node != "" })
}

// SPIFFEID is the identity as one node holds it.
func (i *Identity) SPIFFEID(node string) string {
	if i.pattern == nil {
		return i.fixed
	}
	return resolve(i.trustDomain, i.declared, node)
}

// Has reports whether id is this identity on some node.
func (i *Identity) Has(id string) bool {
	if i.pattern != nil {
		return i.pattern.MatchString(id)
	}
	return i.fixed == id
}

// Entry is the registration entry as one node sees it. The caller may keep
// and change the message, not its slices.
func (i *Identity) Entry(node string) *nodev1.Entry {
	id := i.SPIFFEID(node)
	e := &nodev1.Entry{
		Name: i.Name, Namespace: i.Namespace, SpiffeId: id, Selectors: i.Selectors,
		X509TtlSeconds: int64(i.ttl / time.Second), JwtTtlSeconds: int64(i.jwtTTL / time.Second),
		DnsNames: i.declared.Spec.DNSNames, IncludeOwnIp: i.declared.Spec.IncludeOwnIP,
		SdsNames: i.SDSNames, Hint: i.declared.Spec.Hint,
	}
	for _, p := range i.ports {
		if p.id == id && (p.node == "" || p.node == node) {
			e.Ports = append(e.Ports, uint32(p.port))
			if p.headers {
				e.IdentityHeaderPorts = append(e.IdentityHeaderPorts, uint32(p.port))
			}
		}
	}
	slices.Sort(e.Ports)
	e.Ports = slices.Compact(e.Ports)
	slices.Sort(e.IdentityHeaderPorts)
	e.IdentityHeaderPorts = slices.Compact(e.IdentityHeaderPorts)
	return e
}

// Memo remembers what others derived from this identity.
func (i *Identity) Memo() *Memo { return &i.memo }
