package compile

import (
	"cmp"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/catalog"
)

func (p *proxy) capture(b *resources) {
	p.capturedInbound(b)
	shared := p.snapshot.ServicesMemo().Do(outboundKey{p.namespace, p.options.TrustDomain, p.options.NoIPv6}, func() any {
		r := new(resources)
		p.capturedOutbound(r)
		return r
	}).(*resources)
	b.all = append(b.all, shared.all...)
	b.err = cmp.Or(b.err, shared.err)
}

// outboundKey is all that the outbound side depends on besides the services.
type outboundKey struct {
	namespace   string
	trustDomain spiffeid.TrustDomain
	noIPv6      bool
}

type serviceKey struct{ trustDomain spiffeid.TrustDomain }

// route leads connections to one address and port to a cluster.
type route struct {
	at      netip.AddrPort
	cluster string
}

// capturedOutbound is one listener with a chain for every address that a
// declared service has. Anything else finds no chain, is closed, and counted.
func (p *proxy) capturedOutbound(b *resources) {
	var routes []route
	taken := map[netip.AddrPort]bool{}
	take := func(at netip.AddrPort, cluster string) {
		if !taken[at] {
			taken[at] = true
			routes = append(routes, route{at, cluster})
		}
	}
	services := p.byPrecedence()
	for _, s := range services {
		compiled := s.Memo().Do(serviceKey{p.options.TrustDomain}, func() any {
			r := new(resources)
			compileService(r, s, p.options.TrustDomain)
			return r
		}).(*resources)
		b.all = append(b.all, compiled.all...)
		b.err = cmp.Or(b.err, compiled.err)
		for _, port := range s.Ports {
			for _, a := range s.Addresses {
				take(netip.AddrPortFrom(a, port.Port), newDestination(p.options.TrustDomain, s, port, true).cluster())
			}
		}
	}
	// A virtual address of anyone comes before an endpoint's own.
	for _, s := range services {
		for _, port := range s.Ports {
			d := newDestination(p.options.TrustDomain, s, port, true)
			for _, e := range d.endpoints {
				take(e, d.directCluster())
			}
		}
	}
	slices.SortFunc(routes, func(x, y route) int { return x.at.Compare(y.at) })
	// On loopback: only what this machine redirects arrives here.
	l := listener("outbound", corev3.TrafficDirection_OUTBOUND, accesslog.StatOutbound,
		p.both(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), OutboundPort)...)
	l.ListenerFilters = originalDst()
	l.AccessLog = append(l.AccessLog, unmatched(accesslog.OutboundListener))
	for _, r := range routes {
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
			Name: r.at.String(),
			FilterChainMatch: &listenerv3.FilterChainMatch{
				DestinationPort: wrapperspb.UInt32(uint32(r.at.Port())),
				PrefixRanges:    []*corev3.CidrRange{{AddressPrefix: r.at.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(r.at.Addr().BitLen()))}},
			},
			Filters: tcpProxy(r.cluster, r.cluster, accesslog.Outbound, false),
		})
	}
	if len(routes) == 0 {
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

// compileService makes the clusters and endpoints of a service, which are the
// same for every captured proxy.
func compileService(b *resources, s *catalog.Service, td spiffeid.TrustDomain) {
	for _, port := range s.Ports {
		d := newDestination(td, s, port, true)
		b.add(TypeCluster, d.cluster(), d.balanced())
		b.add(TypeEndpoint, d.cluster(), assignment(d.cluster(), d.endpoints))
		if len(d.endpoints) > 0 {
			b.add(TypeCluster, d.directCluster(), d.direct())
		}
	}
}
