package chaincheck

import (
	"crypto/x509"
	"net"
	"testing"
)

// public is a server's certificate of the web PKI, as an ACME CA issues it.
func public(t testing.TB, change func(*x509.Certificate)) (Params, []*x509.Certificate) {
	t.Helper()
	root := ca(t, "Public Root", nil, nil)
	issuing := ca(t, "Public Issuing", root, nil)
	leaf := issuing.leaf(t, func(c *x509.Certificate) {
		c.URIs, c.DNSNames = nil, []string{"www.example.com", "*.api.example.com"}
		c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1")}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if change != nil {
			change(c)
		}
	})
	return Params{Chain: []*x509.Certificate{leaf, issuing.cert}, Usage: Server, Revocation: Prefer, Now: now}, []*x509.Certificate{root.cert}
}

func TestRFC9525ServerNames(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		want       Cause
	}{
		{"the name", "www.example.com", ""},
		{"in capitals", "WWW.Example.COM", ""},
		{"with a trailing dot", "www.example.com.", ""},
		{"a label under the wildcard", "v1.api.example.com", ""},
		{"two labels under the wildcard", "a.v1.api.example.com", WrongSAN},
		{"the wildcard's parent", "api.example.com", WrongSAN},
		{"another name", "mail.example.com", WrongSAN},
		{"a name that ends the same", "xwww.example.com", WrongSAN},
		{"the common name", "web", WrongSAN},
		{"an IPv4 address", "192.0.2.1", ""},
		{"an IPv6 address", "2001:db8::1", ""},
		{"an IPv6 address in brackets", "[2001:db8::1]", ""},
		{"another address", "192.0.2.2", WrongSAN},
		{"an IPv4 address as IPv6", "::ffff:192.0.2.1", BadParams},
		{"an address with a zone", "fe80::1%eth0", BadParams},
		{"nothing", "", BadParams},
		{"a dot", ".", BadParams},
		{"a wildcard is nobody's name", "*.api.example.com", BadParams},
		{"a name outside ASCII", "bücher.example.com", BadParams},
		{"a name with a port", "www.example.com:443", BadParams},
		{"a name with a NUL", "www.example.com\x00.evil.example", BadParams},
		{"a bracketed name", "[www.example.com]", BadParams},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, roots := public(t, nil)
			r, err := VerifyServerName(p, roots, tt.host)
			holdsCause(t, r, err, tt.want)
			if err == nil && (r.Host == "" || !r.ID.IsZero()) {
				t.Errorf("verified as %q, %q", r.Host, r.ID)
			}
		})
	}
}

func TestServerNamesAreVerifiedAsStrictlyAsSVIDs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*x509.Certificate)
		params func(*Params)
		want   Cause
	}{
		{"as a client", nil, func(p *Params) { p.Usage = Client }, BadParams},
		{"with no side", nil, func(p *Params) { p.Usage = Any }, BadParams},
		{"with trust domains' roots", nil, func(p *Params) { p.Roots = Roots{} }, BadParams},
		{"nothing was presented", nil, func(p *Params) { p.Chain = nil }, NoCertificate},
		{"clientAuth only", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, nil, BadUsage},
		{"a CA", func(c *x509.Certificate) { c.IsCA = true }, nil, BadUsage},
		{"expired", func(c *x509.Certificate) { c.NotAfter = now.Add(-1e9) }, nil, Expired},
		{"a wildcard above one label", func(c *x509.Certificate) { c.DNSNames = []string{"*.com"} }, nil, WrongSAN},
		{"the name in the common name only", func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses, c.Subject.CommonName = []string{"other.example"}, nil, "www.example.com"
		}, nil, WrongSAN},
		{"Require without lists", nil, func(p *Params) { p.Revocation = Require }, RevocationUnknown},
		{"a life longer than accepted", nil, func(p *Params) { p.MaxLifetime = 1e9 }, Lifetime},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, roots := public(t, tt.change)
			if tt.params != nil {
				tt.params(&p)
			}
			r, err := VerifyServerName(p, roots, "www.example.com")
			if tt.name == "a wildcard above one label" {
				r, err = VerifyServerName(p, roots, "example.com")
			}
			holdsCause(t, r, err, tt.want)
		})
	}
	p, _ := public(t, nil)
	r, err := VerifyServerName(p, nil, "www.example.com")
	holdsCause(t, r, err, BadParams)
	r, err = VerifyServerName(p, []*x509.Certificate{ca(t, "elsewhere", nil, nil).cert}, "www.example.com")
	holdsCause(t, r, err, UnknownCA)
}

func TestNameConstraintsHoldForServerNames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bend  func(*x509.Certificate)
		host  string
		cause Cause
	}{
		{"the domain is permitted", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.com"} }, "www.example.com", ""},
		{"another is permitted", func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.net"} }, "www.example.com", Constraint},
		{"the domain is excluded", func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"example.com"} }, "www.example.com", Constraint},
		{"the address is permitted", func(c *x509.Certificate) {
			c.PermittedIPRanges = []*net.IPNet{{IP: net.IP{192, 0, 2, 0}, Mask: net.CIDRMask(24, 32)}}
		}, "192.0.2.1", ""},
		{"another network is permitted", func(c *x509.Certificate) {
			c.PermittedIPRanges = []*net.IPNet{{IP: net.IP{198, 51, 100, 0}, Mask: net.CIDRMask(24, 32)}}
		}, "192.0.2.1", Constraint},
		{"a name that was not asked for is excluded too", func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"api.example.com"} }, "www.example.com", Constraint},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := ca(t, "Public Root", nil, nil)
			issuing := ca(t, "Public Issuing", root, func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = true; tt.bend(c) })
			leaf := issuing.leaf(t, func(c *x509.Certificate) {
				c.URIs, c.DNSNames, c.IPAddresses = nil, []string{"www.example.com", "*.api.example.com"}, []net.IP{{192, 0, 2, 1}}
			})
			r, err := VerifyServerName(Params{Chain: []*x509.Certificate{leaf, issuing.cert}, Usage: Server, Revocation: Off, Now: now}, []*x509.Certificate{root.cert}, tt.host)
			holdsCause(t, r, err, tt.cause)
		})
	}
}
