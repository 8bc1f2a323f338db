package chaincheck

import (
	"crypto/x509"
	"net/netip"
	"strings"
)

// VerifyServerName checks a chain of the web PKI, e.g. from an ACME CA: the
// same strict path and revocation rules as Verify, with a name instead of a
// SPIFFE ID. It serves clients that dial a server by its public name; it
// never authenticates a client, so p.Usage must be Server.
//
// roots are the anchors; p.Roots must be nil, so that the roots of trust
// domains and public ones cannot be confused. host is what was dialled: a DNS
// name in ASCII (A-labels), or an IP address. It is held against the subject
// alternative names alone (RFC 9525 6.3, 6.5): the common name does not
// count, a wildcard stands for exactly one whole leftmost label above at
// least two others, an IP address matches only an address name. Name
// constraints hold for every name of the leaf.
//
// Public CAs seldom give their lists to TLS clients: under Require every link
// needs p.CRLs or an OCSP answer, otherwise choose Prefer.
//
// The Result has no ID. The error is always an *Error; its cause is
// BadParams for a host that names nothing.
func VerifyServerName(p Params, roots []*x509.Certificate, host string) (*Result, error) {
	switch {
	case p.Usage != Server:
		return nil, refuse(BadParams, nil, "a chain is verified by server name only where a server presented it: Usage must be Server")
	case p.Roots != nil:
		return nil, refuse(BadParams, nil, "a chain is verified by server name or by trust domain: Roots must be nil")
	case len(roots) == 0:
		return nil, refuse(BadParams, nil, "no roots were given that the server %.128q could be verified with", host)
	}
	want, ok := parseHost(host)
	if !ok {
		return nil, refuse(BadParams, nil, "%.128q is neither a DNS name in ASCII nor an IP address: no server can be verified as that", host)
	}
	leaf, err := p.leaf()
	if err != nil {
		return nil, err
	}
	s := newSearch(leaf, p.Chain[1:], roots, p)
	defer s.stop()
	if err := s.run(); err != nil {
		return nil, err
	}
	if !leaf.servesHost(want) {
		e := refuse(WrongSAN, leaf.cert, "none of its names is %s (RFC 9525 6)", want)
		e.Path, e.Anchors, e.Work = s.result(&Result{}).Path, roots, s.work
		return nil, e
	}
	return s.result(&Result{Host: want.String()}), nil
}

// host is a reference identity: a DNS name in lower case, or an address.
type host struct {
	dns  string
	addr netip.Addr
}

func (h host) String() string {
	if h.dns != "" {
		return h.dns
	}
	return h.addr.String()
}

// parseHost reads what was dialled. A trailing dot and the brackets of an
// IPv6 address are spelling; a zone and an IPv4 address written as IPv6 are
// nobody's name.
func parseHost(s string) (host, bool) {
	bare := s
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if bare, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(bare, ":") {
			return host{}, false
		}
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		return host{addr: addr}, addr.Zone() == "" && !addr.Is4In6()
	}
	name := strings.ToLower(strings.TrimSuffix(bare, "."))
	return host{dns: name}, validDNS(name, false)
}

// servesHost: RFC 9525 6.3 (DNS names), 6.5 (IP addresses).
func (f *facts) servesHost(want host) bool {
	for _, n := range f.names {
		switch {
		case n.kind == nameDNS && want.dns != "":
			if matchesDNS(string(n.value), want.dns) {
				return true
			}
		case n.kind == nameIP && want.dns == "":
			if addr, ok := netip.AddrFromSlice(n.value); ok && addr == want.addr {
				return true
			}
		}
	}
	return false
}

// matchesDNS compares a name that validDNS let pass with a lower-case host.
func matchesDNS(have, want string) bool {
	if strings.EqualFold(have, want) {
		return true
	}
	parent, wildcard := strings.CutPrefix(have, "*.")
	_, above, dotted := strings.Cut(want, ".")
	return wildcard && dotted && strings.Contains(parent, ".") && strings.EqualFold(parent, above)
}
