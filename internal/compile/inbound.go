package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/fault"
)

// inbound is one port of the program behind mTLS.
type inbound struct {
	listen netip.AddrPort // explicit mode only
	app    netip.AddrPort
	// headers: HTTP is read, and the program told who calls.
	headers bool
}

func (in inbound) cluster() string { return fmt.Sprintf("inbound|%d", in.app.Port()) }

// readInbound parses the subject's ports; captured ones default to those that
// Services say.
func (p *proxy) readInbound(subject *nodev1.Subject, entry *nodev1.Entry, capture bool) error {
	declared := subject.Inbound
	if capture && len(declared) == 0 {
		for _, port := range entry.Ports {
			declared = append(declared, &nodev1.Inbound{App: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)).String()})
		}
	}
	for _, d := range declared {
		in := inbound{}
		var err error
		if in.app, err = loopback("inbound app", d.App); err != nil {
			return err
		}
		switch {
		case capture && d.Listen != "":
			return fault.New(fault.Invalid, "inbound listen %q: leave it empty, captured connections arrive on port %d", d.Listen, InboundPort)
		case capture && (in.app.Port() == InboundPort || in.app.Port() == OutboundPort):
			return fault.New(fault.Invalid, "inbound app %s: port %d is the proxy's own", d.App, in.app.Port())
		case !capture:
			if in.listen, err = netip.ParseAddrPort(d.Listen); err != nil || in.listen.Port() == 0 || in.listen.Addr().Zone() != "" {
				return fault.New(fault.Invalid, "inbound listen %q: write address:port", d.Listen)
			}
		}
		// What Services say is the port that callers connect to.
		at := in.listen
		if capture {
			at = in.app
		}
		in.headers = slices.Contains(entry.IdentityHeaderPorts, uint32(at.Port()))
		p.inbound = append(p.inbound, in)
	}
	slices.SortFunc(p.inbound, func(a, b inbound) int {
		return cmp.Or(cmp.Compare(a.app.Port(), b.app.Port()), a.listen.Compare(b.listen))
	})
	for n := 1; n < len(p.inbound); n++ {
		a, b := p.inbound[n-1], p.inbound[n]
		if a.app.Port() == b.app.Port() && (capture || a.app != b.app) {
			return fault.New(fault.Invalid, "inbound app port %d is given twice", a.app.Port())
		}
	}
	return nil
}

// loopback parses an address that only the proxy's own machine may reach.
func loopback(what, s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || !a.Addr().IsLoopback() || a.Addr().Is4In6() {
		return a, fault.New(fault.Invalid, "%s %q: write an address on loopback, e.g. 127.0.0.1:8080", what, s)
	}
	return a, nil
}

func (p *proxy) inboundChain(in inbound) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name:                          in.cluster(),
		TransportSocket:               server(p.options.TrustDomain),
		TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
		Filters:                       inboundFilters(in),
	}
}

func (p *proxy) explicitInbound(b *resources) {
	for _, in := range p.inbound {
		l := listener("inbound|"+in.listen.String(), corev3.TrafficDirection_INBOUND, accesslog.StatInbound, in.listen)
		l.FilterChains = []*listenerv3.FilterChain{p.inboundChain(in)}
		b.add(TypeListener, l.Name, l)
	}
	p.appClusters(b, false)
}

// capturedInbound is one listener with a chain for each port; a connection to
// any other port finds none, is closed, and is counted.
func (p *proxy) capturedInbound(b *resources) {
	l := captureListener("inbound", corev3.TrafficDirection_INBOUND, accesslog.StatInbound,
		p.both(netip.IPv4Unspecified(), netip.IPv6Unspecified(), InboundPort)...)
	l.AccessLog = append(l.AccessLog, unmatched(accesslog.InboundListener))
	for _, in := range p.inbound {
		chain := p.inboundChain(in)
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(uint32(in.app.Port()))}
		l.FilterChains = append(l.FilterChains, chain)
	}
	if len(l.FilterChains) == 0 {
		l.FilterChains = nothing()
	}
	b.add(TypeListener, l.Name, l)
	p.appClusters(b, true)
}

// both are the addresses of a capture listener.
func (p *proxy) both(v4, v6 netip.Addr, port uint16) []netip.AddrPort {
	at := []netip.AddrPort{netip.AddrPortFrom(v4, port)}
	if !p.options.NoIPv6 {
		at = append(at, netip.AddrPortFrom(v6, port))
	}
	return at
}

func (p *proxy) appClusters(b *resources, mark bool) {
	done := map[string]bool{}
	for _, in := range p.inbound {
		if !done[in.cluster()] {
			done[in.cluster()] = true
			b.add(TypeCluster, in.cluster(), appCluster(in, p.anyHeaders(in.app), mark))
		}
		if in.headers && !done[in.inner()] {
			done[in.inner()] = true
			b.add(TypeCluster, in.inner(), innerCluster(in))
			b.add(TypeListener, in.inner(), innerListener(in))
		}
	}
}

// anyHeaders reports whether a port of the program is reached by HTTP.
func (p *proxy) anyHeaders(app netip.AddrPort) bool {
	return slices.ContainsFunc(p.inbound, func(in inbound) bool { return in.app == app && in.headers })
}
