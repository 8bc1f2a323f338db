package upstream

import (
	"context"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/ca"
	filecustody "github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/sealed"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The parts that ship, together: authority, journal, door, sealed cache, link.
func TestWithTheRealAuthorityAndSealedCache(t *testing.T) {
	st := memory.New()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	kek, err := filecustody.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := filecustody.New(filecustody.Params{Store: st, TrustDomain: td.Name(), KEK: kek})
	if err != nil {
		t.Fatal(err)
	}
	journal, err := ledger.Open(t.Context(), ledger.Params{Store: st, TrustDomain: td.Name()})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Open(t.Context(), ca.Params{Store: st, Custody: keys, Journal: journal, TrustDomain: td, HeartbeatEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{authority.Run, journal.Run} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	p := nodetest.Over(t, st, nil, func(p *node.Params) {
		p.Authority = authority
		p.Bundle = func() *nodev1.Bundle { s, _ := authority.State(); return s.Bundle }
	})
	p.SetEntry("web-1", webEntry())
	box, err := sealed.Open(durable.OS, filepath.Join(t.TempDir(), "agent"))
	if err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, p)
	a.params.Roots, a.params.BundleHash, a.params.Cache = nil, authority.BundleHash(), box
	a.start()
	a.until("synced", synced)
	state, changed := authority.State()
	for state.Heartbeat == nil {
		<-changed
		state, changed = authority.State()
	}
	p.SetTrust("all", "crl", "default", state.CRL)
	p.SetTrust("all", "heartbeat", "default", state.Heartbeat)
	a.until("CRL and heartbeat are accepted", func(v *View) bool { return len(v.CRLs) == 1 && len(v.Heartbeats) == 1 })
	csr, _ := nodetest.NewCSR(t, func(r *x509.CertificateRequest) { r.URIs = nodetest.URI(webEntry().SpiffeId) })
	res, err := a.SignX509(t.Context(), []*nodev1.X509Item{{Entry: "default/web", SpiffeId: webEntry().SpiffeId, Instance: "uid/1000", Csr: csr}})
	if err != nil || res[0].GetRefusal() != nil {
		t.Fatalf("%v, %v", res, err)
	}
	jwt, err := a.SignJWT(t.Context(), &nodev1.SignJWTRequest{Entry: "default/web", SpiffeId: webEntry().SpiffeId, Audience: []string{"db"}})
	if err != nil || jwt.GetToken() == "" {
		t.Fatal(err)
	}
	id, _ := a.Identity()
	rec, err := p.Registry.Get(t.Context(), "web-1")
	if err != nil || rec.Serial != id.Serial {
		t.Fatalf("the registry has %q, the agent %q: %v", rec.Serial, id.Serial, err)
	}
	_ = a.stop()
	a.params.Prover = nil
	a.start()
	a.until("back from the sealed cache", synced)
}
