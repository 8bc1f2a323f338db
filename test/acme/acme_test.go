package acme

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
)

func TestACertificateIsOrderedBy(t *testing.T) {
	for _, row := range []struct {
		name    string
		domains []string
		change  func(*acmecert.Config, *pebble.Pebble)
	}{
		{"HTTP-01 on the service's own mux", []string{"one.test"}, func(c *acmecert.Config, _ *pebble.Pebble) {
			c.Challenges = []acmecert.Challenge{acmecert.HTTP01}
		}},
		{"TLS-ALPN-01 on the service's own TLS port", []string{"two.test", "Three.Test."}, func(c *acmecert.Config, _ *pebble.Pebble) {
			c.Challenges = []acmecert.Challenge{acmecert.TLSALPN01}
		}},
		{"DNS-01, a wildcard and its parent", []string{"*.w.test", "w.test"}, func(c *acmecert.Config, p *pebble.Pebble) {
			c.DNS = &acmecert.DNS{Provider: p.DNS, Resolvers: []string{p.DNS.Address}}
		}},
		{"whatever the CA offers", []string{"four.test"}, func(*acmecert.Config, *pebble.Pebble) {}},
		{"RSA-2048", []string{"five.test"}, func(c *acmecert.Config, _ *pebble.Pebble) { c.KeyType = acmecert.RSA2048 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := pebble.Start(t, s.options())
			c := s.config(p, row.domains...)
			row.change(&c, p)
			m := s.manage(c)
			s.wait(patience)
			roots := p.Roots(t)
			for _, status := range m.Status() {
				name := status.Domain
				if name == "*.w.test" {
					name = "any.w.test"
				}
				leaf, err := s.leaf(name, roots)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				switch leaf.PublicKey.(type) {
				case *ecdsa.PublicKey:
					if c.KeyType == acmecert.RSA2048 {
						t.Error("the key is ECDSA")
					}
				case *rsa.PublicKey:
					if c.KeyType != acmecert.RSA2048 {
						t.Error("the key is RSA")
					}
				}
				if status.RenewAt.Before(time.Now()) || status.RenewAt.After(leaf.NotAfter) {
					t.Errorf("renewal at %s, valid until %s", status.RenewAt, leaf.NotAfter)
				}
			}
			if p.DNS.Left() != 0 {
				t.Errorf("%d TXT records are left", p.DNS.Left())
			}
		})
	}
}
