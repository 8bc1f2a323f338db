// Package compile answers "what should this subscriber hold": pure functions
// from a snapshot of the catalog and a subject to named, versioned bytes. It
// opens no socket, reads no clock, and gives the same bytes for the same
// input on every replica. What does not depend on the subject is compiled
// once per snapshot and shared.
package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
)

// Type URLs, as Envoy writes them.
const (
	TypeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	// TypeEntry is a registration entry on the trust stream.
	TypeEntry = "entry"
	// TypePolicy is a declared policy on the trust stream.
	TypePolicy = "policy"
)

// Ports and mark of capture (design, section 5).
const (
	OutboundPort = 15001
	InboundPort  = 15006
	// Mark is SO_MARK of every connection that leaves the proxy in capture
	// mode, so that it is not captured again.
	Mark = 1337
)

// Options say what a proxy's configuration depends on besides the catalog
// and the subject.
type Options struct {
	TrustDomain spiffeid.TrustDomain
	// Node that the subject runs on.
	Node string
	// NoIPv6 leaves the IPv6 addresses of the capture listeners out, for
	// machines without IPv6.
	NoIPv6 bool
}

// Proxy compiles the Envoy of one subject: listeners, clusters and
// endpoints, sorted by type and name; every body is the value of a
// google.protobuf.Any of its type. Errors: fault.NotFound when the entry does
// not exist on that node, fault.Denied when it is of another identity,
// fault.Invalid when the subject cannot be.
func Proxy(s *catalog.Snapshot, subject *nodev1.Subject, o Options) ([]*distribute.Resource, error) {
	p, err := newProxy(s, subject, o)
	if err != nil {
		return nil, err
	}
	var b resources
	switch subject.Mode {
	case nodev1.Mode_MODE_EXPLICIT:
		p.explicit(&b)
		slices.SortFunc(b.all, compare)
	case nodev1.Mode_MODE_CAPTURE:
		p.capture(&b)
	}
	if b.err != nil {
		return nil, b.err
	}
	return b.all, nil
}

func compare(a, b *distribute.Resource) int {
	return cmp.Or(strings.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name))
}

// proxy is a subject that was judged: the addresses are parsed once.
type proxy struct {
	snapshot  *catalog.Snapshot
	identity  *catalog.Identity
	namespace string
	inbound   []inbound
	outbound  []outbound
	options   Options
}

func newProxy(s *catalog.Snapshot, subject *nodev1.Subject, o Options) (*proxy, error) {
	if o.TrustDomain != s.TrustDomain {
		return nil, fault.New(fault.Invalid, "compile for trust domain %q out of a catalog of %q", o.TrustDomain.Name(), s.TrustDomain.Name())
	}
	entry, ok := s.EntryByName(o.Node, subject.Entry)
	if !ok {
		return nil, fault.New(fault.NotFound, "no entry %s on node %s: declare a WorkloadIdentity of that name for it", subject.Entry, o.Node)
	}
	if subject.SpiffeId != "" && subject.SpiffeId != entry.SpiffeId {
		return nil, fault.New(fault.Denied, "entry %s is %s on node %s, not %s", entry.Name, entry.SpiffeId, o.Node, subject.SpiffeId)
	}
	identity, _ := s.Identity(entry.Name)
	p := &proxy{snapshot: s, identity: identity, namespace: entry.Namespace, options: o}
	capture := subject.Mode == nodev1.Mode_MODE_CAPTURE
	if !capture && subject.Mode != nodev1.Mode_MODE_EXPLICIT {
		return nil, fault.New(fault.Invalid, "subject %s says no mode: capture or explicit", subject.Id)
	}
	if err := p.readInbound(subject, entry, capture); err != nil {
		return nil, err
	}
	return p, p.readOutbound(subject, capture)
}

// Affected reports whether a change of the catalog may change a subject's
// resources; false is certain.
func Affected(d *catalog.Delta, subject *nodev1.Subject) bool {
	for _, e := range d.Entries {
		if e.Name == subject.Entry {
			return true
		}
	}
	if len(d.Services) == 0 {
		return false
	}
	if subject.Mode != nodev1.Mode_MODE_EXPLICIT {
		return true // any program may call any service
	}
	namespace, _, _ := strings.Cut(subject.Entry, "/")
	for _, out := range subject.Outbound {
		if _, found := slices.BinarySearch(d.Services, serviceName(namespace, out.Service)); found {
			return true
		}
	}
	return false
}

// Diff is what leads from one compiled list to another, in a scope. Both are
// sorted as Proxy and Entries return them.
func Diff(scope distribute.Scope, before, after []*distribute.Resource) []distribute.Change {
	var changes []distribute.Change
	for len(before) > 0 || len(after) > 0 {
		order := 1
		if len(after) == 0 {
			order = -1
		} else if len(before) > 0 {
			order = compare(before[0], after[0])
		}
		switch {
		case order < 0:
			changes = append(changes, distribute.Change{Scope: scope, Type: before[0].Type, Name: before[0].Name})
			before = before[1:]
		case order > 0:
			changes = append(changes, distribute.Change{Scope: scope, Type: after[0].Type, Name: after[0].Name, Resource: after[0]})
			after = after[1:]
		default:
			if before[0].Version != after[0].Version {
				changes = append(changes, distribute.Change{Scope: scope, Type: after[0].Type, Name: after[0].Name, Resource: after[0]})
			}
			before, after = before[1:], after[1:]
		}
	}
	return changes
}
