package acme

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
)

// TestIssuancesThroughRefusedNonces orders many certificates of a Pebble that
// refuses nine nonces of ten, sleeps before it validates, reuses half of the
// authorisations, pages its orders and offers longer and alternate chains:
// 1,000 in make test-long, else 50.
func TestIssuancesThroughRefusedNonces(t *testing.T) {
	count, within := 50, 3*time.Minute
	if os.Getenv("LEGATION_LONG") == "1" {
		count, within = 1000, 40*time.Minute
	}
	s := newSite(t)
	o := s.options()
	o.Env = []string{
		"PEBBLE_WFE_NONCEREJECT=90", "PEBBLE_AUTHZREUSE=50", "PEBBLE_VA_SLEEPTIME=1", "PEBBLE_WFE_ORDERS_PER_PAGE=1",
		"PEBBLE_ALTERNATE_ROOTS=2", "PEBBLE_CHAIN_LENGTH=3",
	}
	p := pebble.Start(t, o)
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.test", i)
	}
	c := s.config(p, names...)
	c.Concurrency, c.ReloadEvery = 20, time.Hour
	m := s.run(c)
	s.serve(m)
	begun := time.Now()
	s.wait(within)
	took := time.Since(begun)
	failed := 0
	for _, status := range m.Status() {
		if status.Err != nil {
			failed++
			t.Errorf("%s: %v", status.Domain, status.Err)
		}
	}
	issued := p.Log.Count("Issued certificate serial")
	t.Logf("%d certificates in %s (%.1f/s), %d issued", count, took.Round(time.Millisecond), float64(count)/took.Seconds(), issued)
	if issued != count {
		t.Errorf("%d were issued for %d names: some were ordered twice", issued, count)
	}
	roots := p.Roots(t)
	for _, name := range []string{names[0], names[count-1]} {
		if _, err := s.leaf(name, roots); err != nil {
			t.Error(err)
		}
	}
}

func TestExternalAccountBinding(t *testing.T) {
	s := newSite(t)
	o := s.options()
	o.EAB = map[string]string{"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}
	p := pebble.Start(t, o)
	for _, row := range []struct {
		name string
		eab  *acmecert.EAB
		says string
	}{
		{"a CA that wants one is not asked without", nil, "set EAB"},
		{"with a wrong key it is refused", &acmecert.EAB{KeyID: "kid-1", HMAC: "AAAA"}, "register an ACME account"},
		{"with an unknown id it is refused", &acmecert.EAB{KeyID: "kid-9", HMAC: o.EAB["kid-1"]}, "register an ACME account"},
		{"with the CA's values it is registered", &acmecert.EAB{KeyID: "kid-1", HMAC: o.EAB["kid-1"]}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			own := *s
			own.t = t
			c := own.config(p, "eab.test")
			c.EAB = row.eab
			m := own.run(c)
			if row.says == "" {
				own.serve(m)
				own.wait(patience)
				return
			}
			until(t, "it says "+row.says, func() bool { return says(m, row.says) })
		})
	}
}

func TestTermsOfService(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	c := s.config(p, "terms.test")
	c.TermsAgreed = false
	m := s.manage(c)
	until(t, "it says where the terms are", func() bool { return says(m, "TermsAgreed") })
}
