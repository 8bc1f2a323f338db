// Package egress answers "may this program connect there, when a stranger
// chose the address". A URL in a certificate, a bundle endpoint or a webhook
// is written by others; what it leads to is inside the network more often
// than not. The guard looks at the addresses that a name really resolves to
// and connects to one that it looked at, so that neither redirection nor a
// name that resolves differently the second time (DNS rebinding) reaches what
// was refused.
//
// What is said over the connection, how long it may take and how much may come
// back is left to the caller.
package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what may be reached. The zero value is safe: addresses of the
// public Internet, at port 80 and 443.
type Config struct {
	// Allow are networks that may be reached although they are not public, at
	// any port: 10.1.0.0/16. An IPv4 network does not cover the IPv6 spelling
	// of its addresses, which is always refused.
	Allow []netip.Prefix
	// AllowHosts are names whose addresses may be reached whatever they are,
	// at any port. Exact, in any case, without wildcards: who answers for the
	// name in DNS decides where this program connects.
	AllowHosts []string
	// Ports beside those of Allow and AllowHosts; nil is 80 and 443.
	Ports []uint16
	// DialTimeout ends a look-up of a name, and one connection attempt; zero is
	// 5 s.
	DialTimeout time.Duration
	// Resolve finds the addresses of a name; nil is net.DefaultResolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address that was looked at; nil is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Guard connects to what Config allows. Any number of goroutines may use it.
type Guard struct {
	config Config
	hosts  map[string]bool
}

// Refused is the error of a connection that the guard did not make.
type Refused struct {
	// Host is what was asked for, Addr what it resolved to (zero when the
	// refusal is of the host or port itself).
	Host string
	Addr netip.Addr
	// Why completes "… is refused: ".
	Why string
}

// Error implements error.
func (e *Refused) Error() string {
	if !e.Addr.IsValid() {
		return fmt.Sprintf("connecting to %.128q is refused: %s", e.Host, e.Why)
	}
	return fmt.Sprintf("connecting to %.128q at %s is refused: %s; allow the network or the host if that is meant", e.Host, e.Addr, e.Why)
}

// New returns a guard. It fails on a host or prefix that allows nothing.
func New(c Config) (*Guard, error) {
	g := &Guard{config: c, hosts: map[string]bool{}}
	for _, host := range c.AllowHosts {
		name := canonical(host)
		if name == "" || strings.ContainsAny(name, "*/:@ ") {
			return nil, fmt.Errorf("allowed host %.128q: it takes a host name, without scheme, port or wildcard", host)
		}
		g.hosts[name] = true
	}
	for _, prefix := range c.Allow {
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("allowed network %v: it takes an IPv4 or IPv6 prefix", prefix)
		}
	}
	if c.Ports == nil {
		g.config.Ports = []uint16{80, 443}
	}
	if c.DialTimeout <= 0 {
		g.config.DialTimeout = 5 * time.Second
	}
	if c.Resolve == nil {
		g.config.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			for i := range addrs {
				addrs[i] = addrs[i].Unmap() // some resolvers write A records as IPv6
			}
			return addrs, err
		}
	}
	if c.Dial == nil {
		g.config.Dial = (&net.Dialer{}).DialContext
	}
	return g, nil
}

func canonical(host string) string { return strings.ToLower(strings.TrimSuffix(host, ".")) }

// maxAddresses bounds those of one name that are tried.
const maxAddresses = 4

// DialContext connects to host:port by TCP, as http.Transport asks it to. A
// name is resolved once, each of its addresses is looked at, and only those
// that may be reached are tried. The error is, or wraps, a *Refused when
// there was none.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %.256q: %w", address, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 || network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, &Refused{Host: address, Why: "only TCP to a numbered port is made"}
	}
	addrs, err := g.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var refusals, failures []error
	tried := 0
	for _, addr := range addrs {
		if err := g.check(host, addr, uint16(port)); err != nil {
			refusals = append(refusals, err)
			continue
		}
		if tried++; tried > maxAddresses {
			break
		}
		attempt, cancel := context.WithTimeout(ctx, g.config.DialTimeout)
		conn, err := g.config.Dial(attempt, network, netip.AddrPortFrom(addr, uint16(port)).String())
		cancel()
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err)
	}
	if len(failures) > 0 {
		return nil, errors.Join(failures...)
	}
	return nil, errors.Join(refusals[:min(len(refusals), maxAddresses)]...)
}

func (g *Guard) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	// A number that is no address to us (0177.1, 2130706433) is one to some
	// resolvers.
	name := canonical(host)
	if last := name[strings.LastIndexByte(name, '.')+1:]; last == "" || strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return nil, &Refused{Host: host, Why: "it is neither a host name nor an address in the usual spelling"}
	}
	ctx, cancel := context.WithTimeout(ctx, g.config.DialTimeout)
	defer cancel()
	addrs, err := g.config.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolving %.128q: %w", host, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolving %.128q: it has no addresses", host)
	}
	return addrs, nil
}

func (g *Guard) check(host string, addr netip.Addr, port uint16) error {
	switch {
	case addr.Zone() != "":
		return &Refused{host, addr, "it has a zone"}
	case addr.Is4In6():
		return &Refused{host, addr, "it is an IPv4 address written as IPv6"}
	case g.hosts[canonical(host)], slices.ContainsFunc(g.config.Allow, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return nil
	case !slices.Contains(g.config.Ports, port):
		return &Refused{host, addr, fmt.Sprintf("port %d is not among those that may be reached", port)}
	}
	if kind := NotPublic(addr); kind != "" {
		return &Refused{host, addr, "it is " + kind}
	}
	return nil
}

// kinds are the special-purpose networks (IANA registries of RFC 6890), and
// addresses outside of them where clouds answer with credentials.
var kinds = []struct {
	prefix netip.Prefix
	kind   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by carrier-grade NAT"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("168.63.129.16/32"), "a cloud's metadata service"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, where metadata services are"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved for protocols"},
	{netip.MustParsePrefix("192.0.2.0/24"), "for documentation"},
	{netip.MustParsePrefix("192.31.196.0/24"), "reserved for AS112"},
	{netip.MustParsePrefix("192.52.193.0/24"), "reserved for AMT"},
	{netip.MustParsePrefix("192.88.99.0/24"), "a 6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("192.175.48.0/24"), "reserved for AS112"},
	{netip.MustParsePrefix("198.18.0.0/15"), "for benchmarks"},
	{netip.MustParsePrefix("198.51.100.0/24"), "for documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "for documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved or broadcast"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fc00::/7"), "private (unique local)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("2001::/23"), "reserved for protocols (Teredo, ORCHID, benchmarks)"},
	{netip.MustParsePrefix("2001:db8::/32"), "for documentation"},
	{netip.MustParsePrefix("2002::/16"), "6to4, which hides an IPv4 address"},
	{netip.MustParsePrefix("2620:4f:8000::/48"), "reserved for AS112"},
	{netip.MustParsePrefix("3fff::/20"), "for documentation"},
}

var globalUnicast = netip.MustParsePrefix("2000::/3")

// NotPublic says what kind of address it is that the public Internet does not
// have; "" for one that it has. An IPv4 address written as IPv6 is not public.
func NotPublic(addr netip.Addr) string {
	switch {
	case !addr.IsValid():
		return "no address"
	case addr.Is4In6():
		return "an IPv4 address written as IPv6"
	}
	for i := range kinds {
		if kinds[i].prefix.Contains(addr.WithZone("")) {
			return kinds[i].kind
		}
	}
	if addr.Is6() && !globalUnicast.Contains(addr.WithZone("")) {
		return "outside the global unicast addresses (NAT64 and others)"
	}
	return ""
}

// Client returns an HTTP client that connects through the guard alone: no
// proxy from the environment, no redirects, no cookies, no connection kept.
// timeout bounds an exchange as a whole.
func (g *Guard) Client(timeout time.Duration) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: g.DialContext, DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10,
			TLSHandshakeTimeout:    timeout, // a dial does not end with the request
		},
		CheckRedirect: func(r *http.Request, _ []*http.Request) error {
			return &Refused{Host: r.URL.Host, Why: "the answer was a redirect, and none is followed"}
		},
	}
}
