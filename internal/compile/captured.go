package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
)

func (p *proxy) capture(b *resources) {
	own := p.identity.Memo().Do(inboundKey{fmt.Sprint(p.inbound), p.options.TrustDomain, p.options.NoIPv6}, func() any {
		r := new(resources)
		p.capturedInbound(r)
		slices.SortFunc(r.all, compare)
		return r
	}).(*resources)
	shared := p.snapshot.ServicesMemo().Do(outboundKey{p.namespace, p.options.TrustDomain, p.options.NoIPv6}, func() any {
		r := new(resources)
		p.capturedOutbound(r)
		slices.SortFunc(r.all, compare)
		return r
	}).(*resources)
	b.all = merge(own.all, shared.all)
	b.err = cmp.Or(own.err, shared.err)
}

// merge joins two sorted lists: most of a captured proxy's resources are
// shared, and sorting them again for each would cost more than the rest.
func merge(a, b []*distribute.Resource) []*distribute.Resource {
	out := make([]*distribute.Resource, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if compare(a[0], b[0]) < 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// inboundKey is all that the inbound side depends on besides the identity.
type inboundKey struct {
	ports       string
	trustDomain spiffeid.TrustDomain
	noIPv6      bool
}

// outboundKey is all that the outbound side depends on besides the services.
type outboundKey struct {
	namespace   string
	trustDomain spiffeid.TrustDomain
	noIPv6      bool
}

type serviceKey struct{ trustDomain spiffeid.TrustDomain }

// compiledService is what every captured proxy has of a service: compiled
// once, shared by all.
type compiledService struct {
	resources
	virtual, direct []way
}

// way leads connections to addresses to a cluster.
type way struct {
	cluster string
	at      []netip.AddrPort
	filters []*listenerv3.Filter
}

// compileService makes the clusters, endpoints and ways of a service.
func compileService(s *catalog.Service, td spiffeid.TrustDomain) *compiledService {
	c := new(compiledService)
	for _, port := range s.Ports {
		d := newDestination(td, s, port, true)
		c.add(TypeCluster, d.cluster(), d.balanced())
		c.add(TypeEndpoint, d.cluster(), assignment(d.cluster(), d.endpoints))
		virtual := make([]netip.AddrPort, len(s.Addresses))
		for n, a := range s.Addresses {
			virtual[n] = netip.AddrPortFrom(a, port.Port)
		}
		c.virtual = append(c.virtual, newWay(d.cluster(), virtual))
		if len(d.endpoints) > 0 {
			c.add(TypeCluster, d.directCluster(), d.direct())
			c.direct = append(c.direct, newWay(d.directCluster(), d.endpoints))
		}
	}
	return c
}

func newWay(cluster string, at []netip.AddrPort) way {
	return way{cluster, at, tcpProxy(cluster, cluster, accesslog.Outbound, false)}
}

// capturedOutbound is one listener with a chain for all addresses that lead
// to one cluster by one port. Anything else finds no chain, is closed, and
// counted.
func (p *proxy) capturedOutbound(b *resources) {
	var compiled []*compiledService
	for _, s := range p.byPrecedence() {
		c := s.Memo().Do(serviceKey{p.options.TrustDomain}, func() any { return compileService(s, p.options.TrustDomain) }).(*compiledService)
		b.all = append(b.all, c.all...)
		b.err = cmp.Or(b.err, c.err)
		compiled = append(compiled, c)
	}
	var chains []*listenerv3.FilterChain
	taken := map[netip.AddrPort]bool{} // Envoy wants each address once; the first has it
	take := func(w way) {
		byPort := map[uint16]*listenerv3.FilterChain{}
		for _, at := range w.at {
			if taken[at] {
				continue
			}
			taken[at] = true
			chain := byPort[at.Port()]
			if chain == nil {
				chain = &listenerv3.FilterChain{
					Name:             fmt.Sprintf("%s|%d", w.cluster, at.Port()),
					FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(at.Port()))},
					Filters:          w.filters,
				}
				byPort[at.Port()] = chain
				chains = append(chains, chain)
			}
			chain.FilterChainMatch.PrefixRanges = append(chain.FilterChainMatch.PrefixRanges,
				&corev3.CidrRange{AddressPrefix: at.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(at.Addr().BitLen()))})
		}
	}
	for _, c := range compiled {
		for _, w := range c.virtual {
			take(w)
		}
	}
	for _, c := range compiled { // an endpoint's own address comes after anyone's virtual one
		for _, w := range c.direct {
			take(w)
		}
	}
	slices.SortFunc(chains, func(x, y *listenerv3.FilterChain) int { return strings.Compare(x.Name, y.Name) })
	// On loopback: only what this machine redirects arrives here.
	l := captureListener("outbound", corev3.TrafficDirection_OUTBOUND, accesslog.StatOutbound,
		p.both(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), OutboundPort)...)
	l.AccessLog = append(l.AccessLog, unmatched(accesslog.OutboundListener))
	l.FilterChains = chains
	if len(chains) == 0 {
		l.FilterChains = nothing()
	}
	b.add(TypeListener, l.Name, l)
}

// nothing is a chain that no connection matches: Envoy wants one, and so that
// refusals are counted there is a listener even where nothing is declared.
func nothing() []*listenerv3.FilterChain {
	return []*listenerv3.FilterChain{{
		Name: "nothing",
		FilterChainMatch: &listenerv3.FilterChainMatch{
			DestinationPort: wrapperspb.UInt32(1),
			PrefixRanges:    []*corev3.CidrRange{{AddressPrefix: "0.0.0.0", PrefixLen: wrapperspb.UInt32(32)}},
		},
	}}
}

// byPrecedence orders services that may claim one address: the subject's own
// namespace, then whoever was first (A47: a latecomer takes no traffic away).
func (p *proxy) byPrecedence() []*catalog.Service {
	services := p.snapshot.Services()
	foreign := func(s *catalog.Service) int {
		if s.Namespace == p.namespace {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(services, func(a, b *catalog.Service) int {
		return cmp.Or(cmp.Compare(foreign(a), foreign(b)), cmp.Compare(a.CreateRevision, b.CreateRevision))
	})
	return services
}
