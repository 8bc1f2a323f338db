package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

func TestAnX509SVIDIsAsTheStandardSays(t *testing.T) {
	a := newWorld(t).replica()
	req := requestFor(t, idOf("/ns/default/sa/web"))
	req.TTL = time.Hour
	req.DNSNames = []string{"web", "web.default.svc.cluster.local", "web"}
	req.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7"), netip.MustParseAddr("::ffff:10.0.0.7")}
	before := time.Now().Truncate(time.Second)
	cert, result := sign(t, a, req)

	issuing, root := a.Chain()
	if err := lint(cert, issuing, req.ID); err != nil {
		t.Error(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	between.AddCert(issuing)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if want := []string{"web", "web.default.svc.cluster.local"}; !slices.Equal(cert.DNSNames, want) {
		t.Errorf("DNS names %v, want %v", cert.DNSNames, want)
	}
	if len(cert.IPAddresses) != 2 {
		t.Errorf("addresses %v, want two", cert.IPAddresses)
	}
	if got := before.Sub(cert.NotBefore); got < minBackdate-time.Second {
		t.Errorf("back-dated by %s, want at least %s", got, minBackdate)
	}
	if cert.NotAfter.Before(before.Add(time.Hour)) || cert.NotAfter.After(time.Now().Add(time.Hour)) {
		t.Errorf("ends %s, want in one hour", cert.NotAfter)
	}
	if result.LifetimeReason != "entry asks 1h0m0s" {
		t.Errorf("reason %q", result.LifetimeReason)
	}
	if len(result.Chain) != 2 || !slices.Equal(result.Chain[1], issuing.Raw) {
		t.Error("the chain is not leaf, issuing CA")
	}
	if len(result.Serial) != 32 || result.Serial != serialHex(cert.SerialNumber) {
		t.Errorf("serial %q", result.Serial)
	}
	record, err := a.journal.BySerial(result.Serial)
	if err != nil || record.SPIFFEID != req.ID.String() || record.Node != "node-1" || len(record.IPs) != 2 || record.LifetimeReason != result.LifetimeReason {
		t.Errorf("record %+v, %v", record, err)
	}
}

func TestLifetimesSayWhichRuleWon(t *testing.T) {
	w := newWorld(t)
	w.life = Lifetimes{Issuing: 48 * time.Hour}
	a := w.replica()
	for _, tc := range []struct {
		asked  time.Duration
		want   time.Duration
		reason string
	}{
		{0, 24 * time.Hour, "default of the trust domain, 24h0m0s"},
		{90 * time.Second, 90 * time.Second, "entry asks 1m30s"},
		{100 * time.Hour, 48 * time.Hour, "entry asks 100h0m0s; capped at the trust domain's maximum, 72h0m0s; cut to the end of the issuing CA"},
	} {
		req := requestFor(t, idOf("/w"))
		req.TTL = tc.asked
		cert, result := sign(t, a, req)
		if got := time.Until(cert.NotAfter); got > tc.want || got < tc.want-time.Minute {
			t.Errorf("asked %s: ends in %s, want %s", tc.asked, got, tc.want)
		}
		if result.LifetimeReason != tc.reason {
			t.Errorf("asked %s: reason %q, want %q", tc.asked, result.LifetimeReason, tc.reason)
		}
	}
	req := requestFor(t, idOf("/w"))
	req.TTL = -time.Hour
	if err := a.SignX509(context.Background(), []X509Request{req})[0].Err; !fault.Is(err, fault.Invalid) {
		t.Errorf("a negative lifetime: %v, want invalid", err)
	}
}

func TestTheAuthorityIsMadeOnceAndKept(t *testing.T) {
	w := newWorld(t)
	first := w.replica()
	second := w.replica()
	if first.BundleHash() != second.BundleHash() || !strings.HasPrefix(first.BundleHash(), "sha256:") {
		t.Errorf("bundle hashes %s and %s", first.BundleHash(), second.BundleHash())
	}
	cert, _ := sign(t, second, requestFor(t, idOf("/w")))
	issuing, _ := first.Chain()
	if err := cert.CheckSignatureFrom(issuing); err != nil {
		t.Error(err)
	}
}

func TestReplicasThatStartTogetherShareOneAuthority(t *testing.T) {
	w := newWorld(t)
	type opened struct {
		a   *Authority
		err error
	}
	results := make(chan opened)
	for range 4 {
		go func() {
			a, err := w.open(func(string) {})
			results <- opened{a, err}
		}()
	}
	hashes := make(map[string]bool)
	for range 4 {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		hashes[r.a.BundleHash()] = true
	}
	if len(hashes) != 1 {
		t.Errorf("%d different roots, want 1", len(hashes))
	}
}

func TestNothingIsIssuedWhileTheJournalCannotBeWritten(t *testing.T) {
	a := newWorld(t).replica()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	result := a.SignX509(ctx, []X509Request{requestFor(t, idOf("/w"))})[0]
	if !errors.Is(result.Err, context.Canceled) || result.Chain != nil {
		t.Errorf("result %+v", result)
	}
}
