package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// deciders are the real catalog, authority and registry over a store in
// memory, running until the test's end.
type deciders struct {
	t         *testing.T
	catalog   *catalog.Catalog
	authority *ca.Authority
	registry  *registry.Registry
	engine    *distribute.Engine
}

func newDeciders(t *testing.T) *deciders {
	t.Helper()
	d := &deciders{t: t, engine: distribute.New(distribute.Params{})}
	st := memory.New()
	t.Cleanup(func() { _ = st.Close() })
	kek, err := file.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	must(t, err)
	keys, err := file.New(file.Params{Store: st, TrustDomain: domain.Name(), KEK: kek})
	must(t, err)
	journal, err := ledger.Open(t.Context(), ledger.Params{Store: st, TrustDomain: domain.Name()})
	must(t, err)
	d.authority, err = ca.Open(t.Context(), ca.Params{Store: st, Custody: keys, Journal: journal, TrustDomain: domain})
	must(t, err)
	d.catalog, err = catalog.Open(t.Context(), catalog.Params{Store: st, TrustDomain: domain})
	must(t, err)
	d.registry = registry.New(registry.Params{Store: st, TrustDomain: domain})
	d.run(journal.Run, d.authority.Run, d.catalog.Run, d.registry.Run)
	return d
}

func (d *deciders) run(parts ...func(context.Context) error) {
	for _, run := range parts {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = run(ctx) }()
		d.t.Cleanup(func() { cancel(); <-done })
	}
}

func (d *deciders) join(name string) {
	d.t.Helper()
	_, err := d.registry.Admit(d.t.Context(), "join_token", attestnode.Claim{Node: name})
	must(d.t, err)
}

func (d *deciders) declare(name, on string) {
	d.t.Helper()
	content := "apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: " + name + ", namespace: default}\nspec:\n  node: \"" + on + "\"\n  selectors: [\"unix:uid:1000\"]\n"
	_, problems, err := d.catalog.Apply(d.t.Context(), catalog.ApplyParams{Documents: []*adminv1.Document{{File: "x.yaml", Content: []byte(content)}}})
	must(d.t, err)
	if len(problems) > 0 {
		d.t.Fatal(problems)
	}
}

// entries is what a node is told, by name; the value is whether it is blocked.
func (d *deciders) entries(name string) map[string]bool {
	d.t.Helper()
	m := map[string]bool{}
	for _, r := range d.engine.List([]distribute.Scope{node.NodeScope(name)}, "entry") {
		var e nodev1.Entry
		must(d.t, proto.Unmarshal(r.Body, &e))
		m[e.Name] = e.Blocked
	}
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestEachNodeIsPushedItsEntriesAlone(t *testing.T) {
	d := newDeciders(t)
	d.join("one")
	d.declare("early", "one")
	nodes := node.New(node.Params{TrustDomain: domain, Authority: d.authority, Registry: d.registry, Engine: d.engine})
	p := &pusher{catalog: d.catalog, authority: d.authority, registry: d.registry, engine: d.engine, nodes: nodes, log: slog.New(slog.DiscardHandler)}
	d.run(p.trust, p.entries)
	is := func(what, name string, want map[string]bool) {
		t.Helper()
		eventually(t, what, func() bool {
			got := d.entries(name)
			if len(got) != len(want) {
				return false
			}
			for k, blocked := range want {
				if b, ok := got[k]; !ok || b != blocked {
					return false
				}
			}
			return true
		})
	}
	is("what was declared before", "one", map[string]bool{"default/early": false})
	d.declare("late", "one")
	d.declare("two", "two")
	d.declare("all", "*")
	is("what is declared later", "one", map[string]bool{"default/early": false, "default/late": false, "default/all": false})
	if got := d.entries("two"); len(got) != 0 {
		t.Errorf("a node that has not joined is told %v", got)
	}
	d.join("two")
	is("a node that joins late", "two", map[string]bool{"default/two": false, "default/all": false})

	// A block marks it wherever it is, also when it is declared again.
	id := spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/all")
	_, err := d.authority.Revoke(t.Context(), ca.RevokeRequest{ID: id, Actor: "test", Reason: "test"})
	must(t, err)
	is("a block", "one", map[string]bool{"default/early": false, "default/late": false, "default/all": true})
	is("a block", "two", map[string]bool{"default/two": false, "default/all": true})
	_, _, err = d.catalog.Delete(t.Context(), catalog.DeleteParams{Kind: "WorkloadIdentity", Namespace: "default", Names: []string{"all"}})
	must(t, err)
	is("a blocked one that is gone", "two", map[string]bool{"default/two": false})
	d.declare("all", "*")
	is("a blocked one that is back", "two", map[string]bool{"default/two": false, "default/all": true})
	d.join("three")
	is("a node that joins while there is a block", "three", map[string]bool{"default/all": true})
	sub := d.engine.Attach(distribute.SubscriberParams{ID: node.SubscriberID("three"), Scopes: []distribute.Scope{node.NodeScope("three")}})
	defer sub.Close()
	must(t, sub.Request(distribute.Request{Type: "entry"}))
	still := func(what string, want ...string) {
		t.Helper()
		r, err := sub.Next(t.Context())
		must(t, err)
		if got := p.stillBlocked(id.String()); !slices.Equal(got, []string{"three"}) {
			t.Errorf("%s is sent, and %q have not followed", what, got)
		}
		must(t, sub.Request(distribute.Request{Type: "entry", Nonce: r.Nonce}))
		if got := p.stillBlocked(id.String()); !slices.Equal(got, want) {
			t.Errorf("%s is acknowledged, and %q have not followed, want %q", what, got, want)
		}
	}
	still("the block", "three")
	must(t, d.authority.Lift(t.Context(), id, ""))
	is("a block that is lifted", "three", map[string]bool{"default/all": false})
	still("its end")

	state, _ := d.authority.State()
	eventually(t, "the trust of now", func() bool {
		r := d.engine.Lookup([]distribute.Scope{node.ScopeAll}, "crl", "default")
		var crl nodev1.CRL
		return r != nil && proto.Unmarshal(r.Body, &crl) == nil && crl.Number == state.CRL.Number
	})
	if n := len(d.engine.List([]distribute.Scope{node.ScopeAll}, "revocation")); n != len(state.Revocations) {
		t.Errorf("%d revocations are pushed of %d", n, len(state.Revocations))
	}
}

// connect makes a handshake with the server's configuration.
func connect(t *testing.T, config *tls.Config, client *tls.Certificate) (*x509.Certificate, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	answered := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, config)
		_ = s.SetDeadline(time.Now().Add(time.Minute))
		answered <- s.Handshake()
	}()
	mine := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	if client != nil {
		mine.Certificates = []tls.Certificate{*client}
	}
	c, err := tls.Dial("tcp", l.Addr().String(), mine)
	if err != nil {
		return nil, <-answered
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], <-answered
}

func TestWhoConnectsIsVerifiedByTheNewestCRL(t *testing.T) {
	d := newDeciders(t)
	skewed := &clock.Skewed{}
	creds, err := newCredentials(t.Context(), domain, d.authority, skewed, slog.New(slog.DiscardHandler), nil, []string{"cp.example.org"})
	must(t, err)
	issue := func(profile ca.Profile, id spiffeid.ID, name string) (*tls.Certificate, string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		must(t, err)
		r := d.authority.SignX509(t.Context(), []ca.X509Request{{Profile: profile, CSR: csr, ID: id, Namespace: "system", Node: name}})[0]
		must(t, r.Err)
		return &tls.Certificate{Certificate: r.Chain, PrivateKey: key}, r.Serial
	}
	id, err := attestnode.ID(domain, "one")
	must(t, err)
	agent, serial := issue(ca.ProfileAgent, id, "one")
	d.run(creds.run)

	leaf, err := connect(t, creds.config(), agent)
	if err != nil {
		t.Fatalf("an agent: %v", err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != attestnode.ServerID(domain).String() || leaf.VerifyHostname("cp.example.org") != nil {
		t.Errorf("the server shows %v %v", leaf.URIs, leaf.DNSNames)
	}
	if _, err := connect(t, creds.config(), nil); err != nil {
		t.Errorf("without a certificate: %v; the matrix decides about those", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	self := &x509.Certificate{SerialNumber: leaf.SerialNumber, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: leaf.URIs}
	der, err := x509.CreateCertificate(rand.Reader, self, self, key.Public(), key)
	must(t, err)
	if _, err := connect(t, creds.config(), &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}); err == nil {
		t.Error("a certificate of nobody's is taken")
	}
	_, err = d.authority.Revoke(t.Context(), ca.RevokeRequest{Serial: serial, Actor: "test"})
	must(t, err)
	eventually(t, "a revoked agent is refused at its next handshake", func() bool {
		_, err := connect(t, creds.config(), agent)
		return err != nil
	})
}

func TestTheServersOwnCertificateIsRenewedAtHalfLife(t *testing.T) {
	d := newDeciders(t)
	skewed := &clock.Skewed{}
	creds, err := newCredentials(t.Context(), domain, d.authority, skewed, slog.New(slog.DiscardHandler), nil, nil)
	must(t, err)
	first := creds.cert.Load().Leaf
	life := first.NotAfter.Sub(first.NotBefore)
	skewed.Jump(life/2 + time.Minute)
	d.run(creds.run)
	eventually(t, "another certificate", func() bool { return creds.cert.Load().Leaf.SerialNumber.Cmp(first.SerialNumber) != 0 })
	// By the skewed clock the new one is past its half too: that is no reason
	// to sign as fast as one can.
	second := creds.cert.Load().Leaf.SerialNumber
	time.Sleep(50 * time.Millisecond)
	if creds.cert.Load().Leaf.SerialNumber.Cmp(second) != 0 {
		t.Error("it is renewed in a loop")
	}
}

// A tenant that applies policies without end holds up no revocation.
func TestA54ARevocationDoesNotWaitForPolicies(t *testing.T) {
	d := newDeciders(t)
	d.declare("web", "*")
	for i := range 60 {
		d.join(fmt.Sprint("node-", i))
	}
	nodes := node.New(node.Params{TrustDomain: domain, Authority: d.authority, Registry: d.registry, Engine: d.engine})
	p := &pusher{catalog: d.catalog, authority: d.authority, registry: d.registry, engine: d.engine, nodes: nodes, log: slog.New(slog.DiscardHandler)}
	d.run(p.trust, p.entries)
	eventually(t, "the entry of each node", func() bool {
		for i := range 60 {
			if len(d.entries(fmt.Sprint("node-", i))) != 1 {
				return false
			}
		}
		return true
	})
	ctx, stop := context.WithCancel(t.Context())
	var rounds atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var subjects strings.Builder
		for i := range 250 {
			fmt.Fprintf(&subjects, "    - spiffe://example.org/ns/default/*/*/x%d\n", i)
		}
		for round := 0; ctx.Err() == nil; round++ {
			var all strings.Builder
			for i := range 40 {
				fmt.Fprintf(&all, "---\napiVersion: legation.io/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  subjects:\n%s  modules:\n    allow.rego: |\n      package legation\n      # %d %s\n      allow := true\n",
					i, subjects.String(), round, strings.Repeat("x", 8000))
			}
			if _, problems, err := d.catalog.Apply(ctx, catalog.ApplyParams{Documents: []*adminv1.Document{{File: "f", Content: []byte(all.String())}}}); err == nil && len(problems) == 0 {
				rounds.Add(1)
			} else if ctx.Err() == nil {
				t.Error(problems, err)
				return
			}
		}
	}()
	defer func() {
		stop()
		<-ended
	}()
	eventually(t, "the first round of policies", func() bool { return rounds.Load() > 0 })
	var pushed, blocked time.Duration
	for i := range 10 {
		time.Sleep(20 * time.Millisecond) // so that rounds of policies come in between
		id := spiffeid.RequireFromString(fmt.Sprint("spiffe://example.org/ns/default/sa/", i))
		if i == 5 {
			id = spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/web")
		}
		before := len(d.engine.List([]distribute.Scope{node.ScopeAll}, "revocation"))
		began := time.Now()
		_, err := d.authority.Revoke(t.Context(), ca.RevokeRequest{ID: id, Actor: "test", Reason: "test"})
		must(t, err)
		eventually(t, "a revocation", func() bool { return len(d.engine.List([]distribute.Scope{node.ScopeAll}, "revocation")) > before })
		pushed = max(pushed, time.Since(began))
		if i == 5 {
			eventually(t, "a block", func() bool { return d.entries("node-59")["default/web"] })
			blocked = time.Since(began)
		}
	}
	t.Logf("revocations were pushed within %s, blocked entries within %s", pushed, blocked)
	if pushed > 3*time.Second || blocked > 10*time.Second {
		t.Errorf("revocations were pushed within %s, blocked entries within %s", pushed, blocked)
	}
}
