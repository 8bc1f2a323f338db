package compile

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/fault"
)

// outbound is a local port for a destination, in explicit mode.
type outbound struct {
	listen  netip.AddrPort
	service string // "<namespace>/<name>"
	port    uint16
}

var serviceHost = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?(\.svc(\.cluster\.local)?)?$`)

// serviceName is "<namespace>/<name>" of a host as a person writes it.
func serviceName(namespace, host string) string {
	host = strings.TrimSuffix(strings.TrimSuffix(host, ".cluster.local"), ".svc")
	name, ns, ok := strings.Cut(host, ".")
	if !ok {
		ns = namespace
	}
	return ns + "/" + name
}

func (p *proxy) readOutbound(subject *nodev1.Subject, capture bool) error {
	if capture && len(subject.Outbound) > 0 {
		return fault.New(fault.Invalid, "subject %s is captured: leave outbound empty, every declared Service is reachable", subject.Id)
	}
	for _, d := range subject.Outbound {
		if !serviceHost.MatchString(d.Service) {
			return fault.New(fault.Invalid, "outbound service %q: write <service> or <service>.<namespace>", d.Service)
		}
		if d.Port < 1 || d.Port > 65535 {
			return fault.New(fault.Invalid, "outbound port %d of %s: write a port from 1 to 65535", d.Port, d.Service)
		}
		listen, err := loopback("outbound listen", d.Listen)
		if err != nil {
			return err
		}
		p.outbound = append(p.outbound, outbound{listen, serviceName(p.namespace, d.Service), uint16(d.Port)})
	}
	return p.distinct()
}

// distinct refuses two listeners on one address.
func (p *proxy) distinct() error {
	seen := map[netip.AddrPort]bool{}
	check := func(a netip.AddrPort) error {
		if a.IsValid() && seen[a] {
			return fault.New(fault.Invalid, "listen %s is given twice", a)
		}
		seen[a] = true
		return nil
	}
	for _, in := range p.inbound {
		if err := check(in.listen); err != nil {
			return err
		}
	}
	for _, out := range p.outbound {
		if err := check(out.listen); err != nil {
			return err
		}
	}
	return nil
}

// destination is one port of one service, as every proxy sees it.
type destination struct {
	trustDomain     spiffeid.TrustDomain
	namespace, name string
	port            uint16
	ids             []string
	endpoints       []netip.AddrPort
	mark            bool
}

func (d destination) cluster() string {
	return fmt.Sprintf("outbound|%d|%s.%s", d.port, d.name, d.namespace)
}
func (d destination) directCluster() string {
	return fmt.Sprintf("direct|%d|%s.%s", d.port, d.name, d.namespace)
}

// sni tells the server, and whoever reads its log, what was meant.
func (d destination) sni() string {
	return fmt.Sprintf("outbound_.%d_._.%s.%s", d.port, d.name, d.namespace)
}

func newDestination(td spiffeid.TrustDomain, s *catalog.Service, p catalog.ServicePort, mark bool) destination {
	d := destination{trustDomain: td, namespace: s.Namespace, name: s.Name, port: p.Port, ids: p.IDs, mark: mark}
	for _, e := range p.Endpoints {
		d.endpoints = append(d.endpoints, netip.AddrPortFrom(e.Address, e.Port))
	}
	d.endpoints = slices.Compact(d.endpoints)
	return d
}

func (p *proxy) explicit(b *resources) {
	p.explicitInbound(b)
	done := map[string]bool{}
	for _, out := range p.outbound {
		namespace, name, _ := strings.Cut(out.service, "/")
		// Without Service, port or endpoints the cluster is there and refuses:
		// a connection is then counted, and works once the Service is there.
		d := destination{trustDomain: p.options.TrustDomain, namespace: namespace, name: name, port: out.port}
		if s, ok := p.snapshot.Service(namespace, name); ok {
			if port, ok := s.Port(out.port); ok {
				d = newDestination(p.options.TrustDomain, s, port, false)
			}
		}
		l := listener("outbound|"+out.listen.String(), corev3.TrafficDirection_OUTBOUND, accesslog.StatOutbound, out.listen)
		l.FilterChains = []*listenerv3.FilterChain{{Name: d.cluster(), Filters: tcpProxy(d.cluster(), d.cluster(), accesslog.Outbound, false)}}
		b.add(TypeListener, l.Name, l)
		if !done[d.cluster()] {
			done[d.cluster()] = true
			b.add(TypeCluster, d.cluster(), d.balanced())
			b.add(TypeEndpoint, d.cluster(), assignment(d.cluster(), d.endpoints))
		}
	}
}
