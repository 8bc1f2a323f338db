package server

import (
	"log/slog"
	"strings"
	"testing"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/sdk/renewal"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestAServerWhoseCertificateIsNotRenewedGoesOnAndSaysSo: its identity is
// revoked when renewal is due, and given back.
func TestAServerWhoseCertificateIsNotRenewedGoesOnAndSaysSo(t *testing.T) {
	d := newDeciders(t)
	skewed := &clock.Skewed{}
	registry := prometheus.NewRegistry()
	creds, err := newCredentials(t.Context(), domain, d.authority, skewed, slog.New(slog.DiscardHandler), registry, []string{"cp.example.org"})
	must(t, err)
	first := creds.cert.Load()
	own := func() *renewal.Certificate {
		list := creds.renewals.list()
		if len(list) != 1 || list[0].Key().String() != "system/control-plane" {
			t.Fatalf("renewed are %v", list)
		}
		return list[0]
	}
	if s := own().Status; !s.Is(renewal.Ready) || *s.Revision != 1 || !s.NotAfter.Equal(first.Leaf.NotAfter) {
		t.Errorf("at the start: %+v", s)
	}
	if n := len(first.Certificate); n != 3 {
		t.Errorf("%d certificates are presented; want leaf, issuing CA and root", n)
	}
	_, err = d.authority.Revoke(t.Context(), ca.RevokeRequest{ID: attestnode.ServerID(domain), Actor: "test"})
	must(t, err)
	skewed.Jump(first.Leaf.NotAfter.Sub(first.Leaf.NotBefore) / 2)
	if err := creds.renewals.first(t.Context()); err != nil {
		t.Errorf("what is there is still good, and yet: %v", err)
	}
	same := func() bool { return creds.cert.Load().Leaf.Equal(first.Leaf) }
	if !same() {
		t.Error("something else is served")
	}
	s := own().Status
	if c := s.Condition(renewal.Issuing); !s.Is(renewal.Ready) || c == nil || c.Reason != renewal.ReasonFailed || !strings.Contains(c.Message, "is revoked") || *s.FailedIssuanceAttempts != 1 {
		t.Errorf("after a failure: %+v", s)
	}
	if n, err := testutil.GatherAndCount(registry, "legation_certificate_issuances_total", "legation_certificate_expiry_timestamp_seconds"); err != nil || n != 3 {
		t.Errorf("%d series of its renewal (%v)", n, err)
	}
	must(t, d.authority.Lift(t.Context(), attestnode.ServerID(domain), ""))
	skewed.Jump(2 * between * 6)
	must(t, creds.renewals.first(t.Context()))
	if s := own().Status; *s.Revision != 2 || s.FailedIssuanceAttempts != nil || same() {
		t.Errorf("after it was lifted: %+v", s)
	}
}

func TestStatusTellsWhatIsRenewed(t *testing.T) {
	c := configFor(t)
	p := start(t, c)
	defer p.end(t)
	conn := dial(t, c.AdminSocket)
	defer conn.Close()
	r, err := adminv1.NewAdminClient(conn).Status(t.Context(), &adminv1.StatusRequest{})
	must(t, err)
	if len(r.Renewals) != 1 || r.Renewals[0].Name != "system/control-plane" || !r.Renewals[0].Ready || r.Renewals[0].RenewalUnix >= r.Renewals[0].NotAfterUnix || r.Renewals[0].Revision != 1 {
		t.Errorf("status tells of %v", r.Renewals)
	}
	for _, line := range r.Problems {
		if strings.Contains(line, "control-plane") {
			t.Error(line)
		}
	}
}
