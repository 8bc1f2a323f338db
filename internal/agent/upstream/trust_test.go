package upstream

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

// bench is a Link without a control plane, for judging resources.
type bench struct {
	*testing.T
	link      *Link
	authority *nodetest.Authority
	clock     *clock.Skewed
}

func newBench(t *testing.T) *bench {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	c := &clock.Skewed{}
	b := &bench{t, New(Params{TrustDomain: td, Clock: c}), nodetest.NewAuthority(t, td, c), c}
	b.must("bundle", "example.org", b.authority.Bundle(5))
	return b
}

func (b *bench) apply(typ, name string, m proto.Message) error {
	b.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return b.raw(&nodev1.TrustResource{Type: typ, Name: name, Version: "v", Body: body})
}

func (b *bench) raw(r *nodev1.TrustResource) error {
	b.link.mu.Lock()
	defer b.link.mu.Unlock()
	batch := b.link.begin()
	err := batch.apply(r)
	b.link.publish(batch)
	return err
}

func (b *bench) must(typ, name string, m proto.Message) {
	b.Helper()
	if err := b.apply(typ, name, m); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) refuses(what, typ, name string, m proto.Message, want string) {
	b.Helper()
	before, _ := b.link.View()
	err := b.apply(typ, name, m)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
		b.Errorf("%s: %v; want invalid with %q", what, err, want)
	}
	if after, _ := b.link.View(); after != before {
		b.Errorf("%s: the view changed", what)
	}
}

func TestBundlesOnlyGrow(t *testing.T) {
	b := newBench(t)
	b.must("bundle", "example.org", b.authority.Bundle(6))
	b.refuses("an older bundle", "bundle", "example.org", b.authority.Bundle(5), "lower than 6")
	b.refuses("an empty bundle", "bundle", "example.org", &nodev1.Bundle{TrustDomain: "example.org", Sequence: 9}, "0 roots")
	b.refuses("a bundle under another's name", "bundle", "other.org", b.authority.Bundle(9), "it is for trust domain")
	bad := b.authority.Bundle(9)
	bad.X509Roots = append(bad.X509Roots, b.authority.Issuing.Raw)
	b.refuses("an issuing CA among the roots", "bundle", "example.org", bad, "not self-signed")
	bad = b.authority.Bundle(9)
	bad.X509Roots[0] = bad.X509Roots[0][:40]
	b.refuses("a truncated root", "bundle", "example.org", bad, "does not parse")
	bad = b.authority.Bundle(9)
	bad.Jwks = []byte(`{"keys":[{"kty":"oct"}]}`)
	b.refuses("JWT keys that are none", "bundle", "example.org", bad, "JWT keys")
	if err := b.raw(&nodev1.TrustResource{Type: "bundle", Name: "example.org", Removed: true}); !fault.Is(err, fault.Invalid) {
		t.Errorf("our own bundle was removed: %v", err)
	}
}

// A33: what is not a CA never anchors a chain.
func TestA33LeafInABundleIsRefused(t *testing.T) {
	b := newBench(t)
	_, key := nodetest.NewCSR(t, nil)
	leaf := b.authority.Issue(spiffeid.RequireFromString("spiffe://example.org/x"), key.Public(), time.Hour, x509.ExtKeyUsageServerAuth)
	b.refuses("a leaf", "bundle", "example.org", &nodev1.Bundle{TrustDomain: "example.org", Sequence: 9, X509Roots: [][]byte{leaf.Raw}}, "is not a CA")
}

func TestCRLNumbersOnlyGrow(t *testing.T) {
	b := newBench(t)
	b.must("crl", "default", b.authority.CRL(t, 3))
	b.must("crl", "default", b.authority.CRL(t, 4, big.NewInt(7)))
	b.refuses("an older CRL", "crl", "default", b.authority.CRL(t, 3), "lower than 4")
	b.refuses("another authority's", "crl", "other", b.authority.CRL(t, 5), "it is of authority")
	b.refuses("no lists", "crl", "default", &nodev1.CRL{Authority: "default", Number: 9}, "no lists")
	wrong := b.authority.CRL(t, 5)
	wrong.Number = 9
	b.refuses("a number none of its lists has", "crl", "default", wrong, "has the number 9")
	wrong = b.authority.CRL(t, 5)
	wrong.Lists[1] = []byte{1, 2, 3}
	b.refuses("a list that does not parse", "crl", "default", wrong, "CRL 1 is not used")
	if err := b.raw(&nodev1.TrustResource{Type: "crl", Name: "default", Removed: true}); !fault.Is(err, fault.Invalid) {
		t.Errorf("removed, so that an older one could follow: %v", err)
	}
}

func TestHeartbeatsAreVerified(t *testing.T) {
	b := newBench(t)
	impostor := nodetest.NewAuthority(t, b.authority.TrustDomain, b.clock)
	b.must("heartbeat", "default", b.authority.Heartbeat(t, 3))
	b.refuses("by another authority's key", "heartbeat", "default", impostor.Heartbeat(t, 9), "was not signed by a root")
	forged := b.authority.Heartbeat(t, 4)
	forged.CrlNumber = 5
	b.refuses("with another number than was signed", "heartbeat", "default", forged, "signature")
	forged = b.authority.Heartbeat(t, 4)
	forged.Authority = "other"
	b.refuses("for another authority than was signed", "heartbeat", "other", forged, "signature")
	b.refuses("with a lower number", "heartbeat", "default", b.authority.Heartbeat(t, 2), "its CRL number 2 is lower")
	late := b.authority.Heartbeat(t, 4)
	b.clock.Jump(time.Hour)
	early := b.authority.Heartbeat(t, 4)
	b.clock.Jump(-time.Hour)
	b.refuses("from the future", "heartbeat", "default", early, "the clock here")
	b.clock.Jump(-time.Minute)
	b.must("heartbeat", "default", b.authority.Heartbeat(t, 3))
	b.clock.Jump(time.Minute)
	if v, _ := b.link.View(); v.Heartbeats["default"].GetUnixSeconds() < late.GetUnixSeconds()-30 {
		t.Error("a heartbeat of a replica whose clock is behind replaced a later one")
	}
	b.must("heartbeat", "default", late)
	b.must("crl", "default", b.authority.CRL(t, 1))
	_, key := nodetest.NewCSR(t, nil)
	leaf := b.authority.Issue(spiffeid.RequireFromString("spiffe://example.org/x"), key.Public(), time.Hour, x509.ExtKeyUsageServerAuth)
	byLeaf := b.authority.Heartbeat(t, 4)
	byLeaf.Issuer = leaf.Raw
	b.refuses("by a leaf", "heartbeat", "default", byLeaf, "is not a CA")
}

func TestEntriesAndRevocationsAreChecked(t *testing.T) {
	b := newBench(t)
	entry := func(edit func(*nodev1.Entry)) *nodev1.Entry {
		e := webEntry()
		edit(e)
		return e
	}
	name := "default/web"
	b.must("entry", name, webEntry())
	b.refuses("another name", "entry", "default/db", webEntry(), "calls itself")
	b.refuses("no selectors", "entry", name, entry(func(e *nodev1.Entry) { e.Selectors = nil }), "every caller")
	b.refuses("a selector without a type", "entry", name, entry(func(e *nodev1.Entry) { e.Selectors = []string{"1000"} }), "type:value")
	b.refuses("another trust domain", "entry", name, entry(func(e *nodev1.Entry) { e.SpiffeId = "spiffe://evil.org/x" }), "not one a workload")
	b.refuses("the server's identity", "entry", name, entry(func(e *nodev1.Entry) { e.SpiffeId = "spiffe://example.org/legation/server" }), "not one a workload")
	b.refuses("a malformed identity", "entry", name, entry(func(e *nodev1.Entry) { e.SpiffeId = "spiffe://example.org/a/../b" }), "SPIFFE ID")
	b.refuses("a negative lifetime", "entry", name, entry(func(e *nodev1.Entry) { e.X509TtlSeconds = -1 }), "negative")
	b.must("revocation", "r1", &nodev1.Revocation{Id: "r1", Serials: []string{"0abc"}})
	b.refuses("another id", "revocation", "r2", &nodev1.Revocation{Id: "r1", Serials: []string{"0abc"}}, "its id")
	b.refuses("nothing named", "revocation", "r3", &nodev1.Revocation{Id: "r3"}, "names nothing")
	b.refuses("a serial that is not hex", "revocation", "r3", &nodev1.Revocation{Id: "r3", Serials: []string{"XYZ"}}, "lower-case hex")
	if err := b.raw(&nodev1.TrustResource{Type: "entry", Name: name, Body: []byte{0xff}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("bytes that do not parse: %v", err)
	}
	if err := b.raw(&nodev1.TrustResource{Type: "type-of-the-future", Name: "x"}); err != nil {
		t.Errorf("an unknown type: %v; want it ignored", err)
	}
}

func TestViewsShareWhatDidNotChange(t *testing.T) {
	b := newBench(t)
	b.must("entry", "default/web", webEntry())
	old, changed := b.link.View()
	b.must("revocation", "r1", &nodev1.Revocation{Id: "r1", Serials: []string{"0a"}})
	now, _ := b.link.View()
	select {
	case <-changed:
	default:
		t.Fatal("nobody was woken")
	}
	if len(old.Revocations) != 0 || len(now.Revocations) != 1 || old.Entries["default/web"] != now.Entries["default/web"] {
		t.Fatal("the old view changed, or the new one copied")
	}
}

// A54 at the agent: one poisoned resource is refused with its reason, all
// others arrive.
func TestA54PoisonedResourceStopsNoOther(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	p.SetEntry("web-1", &nodev1.Entry{Name: "default/poison", Namespace: "default", SpiffeId: "not an id"})
	a := newAgent(t, p)
	a.start()
	v := a.until("synced", func(v *View) bool { return synced(v) && len(v.Entries) > 0 })
	if len(v.Entries) != 1 || v.Entries["default/web"] == nil {
		t.Fatalf("%v", v.Entries)
	}
	nodetest.Eventually(t, "the ledger names it", func() bool {
		lines := p.Engine.Statuses(distribute.Filter{Subscriber: "node/web-1", Behind: true})
		return len(lines) == 1 && lines[0].Name == "default/poison" && strings.Contains(lines[0].Error, "SPIFFE ID")
	})
	poisoned := webEntry()
	poisoned.SpiffeId = "spiffe://example.org/a//b"
	p.SetEntry("web-1", poisoned)
	nodetest.Eventually(t, "the ledger has two", func() bool {
		return len(p.Engine.Statuses(distribute.Filter{Subscriber: "node/web-1", Behind: true})) == 2
	})
	if v, _ := a.View(); v.Entries["default/web"].GetSpiffeId() != webEntry().GetSpiffeId() {
		t.Fatal("the last good entry is gone")
	}
}

func TestRevokedServerIsNotTrustedAgain(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	p.SetTrust("all", "crl", "default", p.Authority.CRL(t, 2, p.ServerSerial()))
	a.until("has the CRL", func(v *View) bool { return len(v.CRLs) == 1 })
	p.StopKeepingCertificate()
	p.Start()
	a.until("refused", func(v *View) bool { return !v.Connected && strings.Contains(v.LastError, "revoked") })
}

func TestHalfOfWhatHoldsIsNotKept(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	c := &clock.Skewed{}
	cache := &memoryCache{}
	l := New(Params{TrustDomain: td, Clock: c, Cache: cache})
	body, _ := proto.Marshal(nodetest.NewAuthority(t, td, c).Bundle(1))
	b := l.begin()
	if err := b.apply(&nodev1.TrustResource{Type: "bundle", Name: "example.org", Body: body}); err != nil {
		t.Fatal(err)
	}
	l.publish(b) // as an attestation does, before the trust stream has begun
	l.flush()
	if _, err := cache.Read(viewName); !fault.Is(err, fault.NotFound) {
		t.Errorf("a view without its entries was kept (%v): after a restart it would pass for whole", err)
	}
	b = l.begin()
	b.changed, b.view.Synced = true, true
	l.publish(b)
	l.flush()
	if _, err := cache.Read(viewName); err != nil {
		t.Errorf("the whole view was not kept: %v", err)
	}
}

func FuzzDecodeView(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	c := &clock.Skewed{}
	authority := nodetest.NewAuthority(f, td, c)
	l := New(Params{TrustDomain: td, Clock: c})
	for _, r := range []struct {
		typ, name string
		m         proto.Message
	}{
		{"bundle", "example.org", authority.Bundle(1)}, {"crl", "default", authority.CRL(f, 1)}, {"entry", "default/web", webEntry()},
		{"heartbeat", "default", authority.Heartbeat(f, 1)}, {"revocation", "r", &nodev1.Revocation{Id: "r", Node: "n"}},
	} {
		body, _ := proto.Marshal(r.m)
		b := l.begin()
		if err := b.apply(&nodev1.TrustResource{Type: r.typ, Name: r.name, Body: body}); err != nil {
			f.Fatal(err)
		}
		l.publish(b)
	}
	raw, err := l.encodeView()
	if err != nil {
		f.Fatal(err)
	}
	again := New(Params{TrustDomain: td, Clock: c})
	if err := again.decodeView(raw); err != nil {
		f.Fatal(err)
	}
	if v, _ := again.View(); !v.Synced || len(v.Entries)+len(v.Bundles)+len(v.CRLs)+len(v.Heartbeats)+len(v.Revocations) != 5 {
		f.Fatal("the cache lost something")
	}
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Fuzz(func(t *testing.T, raw []byte) {
		l := New(Params{TrustDomain: td, Clock: c})
		_ = l.decodeView(raw)
		_ = l.decodeConfig(raw)
		_, _ = l.parseIdentity(raw)
		v, _ := l.View()
		for name, e := range v.Entries {
			if l.checkEntry(name, e) != nil {
				t.Fatalf("an entry that no stream could bring: %v", e)
			}
		}
	})
}
