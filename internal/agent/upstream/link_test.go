package upstream

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryCache is a Cache that outlives a Link.
type memoryCache struct {
	mu   sync.Mutex
	data map[string][]byte
	fail error
}

func (c *memoryCache) Read(name string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if raw, ok := c.data[name]; ok {
		return append([]byte(nil), raw...), nil
	}
	return nil, fault.New(fault.NotFound, "no %s", name)
}

func (c *memoryCache) Write(name string, plain []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	if c.data == nil {
		c.data = map[string][]byte{}
	}
	c.data[name] = append([]byte(nil), plain...)
	return nil
}

// agent is a Link under test with what it needs to be started again.
type agent struct {
	t      *testing.T
	params Params
	*Link
	stop func() error // ends Run and returns its error
}

// newAgent prepares a node called web-1 with a fresh token.
func newAgent(t *testing.T, p *nodetest.Plane) *agent {
	t.Helper()
	return &agent{t: t, params: Params{
		Servers: []string{p.Address}, TrustDomain: p.TrustDomain, Roots: []*x509.Certificate{p.Authority.Root},
		Prover: attestnode.Proof(attestnode.JoinToken, []byte(p.Token("web-1"))),
		Cache:  &memoryCache{}, Clock: p.Clock, Version: "test", Log: testLog(),
	}}
}

func testLog() *slog.Logger {
	if os.Getenv("LEGATION_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// start runs a new Link over the agent's parameters.
func (a *agent) start() {
	a.t.Helper()
	a.Link = New(a.params)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Link.Run(ctx) }()
	a.stop = sync.OnceValue(func() error { cancel(); return <-done })
	a.t.Cleanup(func() { _ = a.stop() })
}

// until waits for a view.
func (a *agent) until(what string, ok func(*View) bool) *View {
	a.t.Helper()
	deadline := time.After(time.Minute)
	for {
		v, changed := a.View()
		if ok(v) {
			return v
		}
		select {
		case <-changed:
		case <-deadline:
			a.t.Fatalf("not within a minute: %s; connected %v, synced %v, last error %q", what, v.Connected, v.Synced, v.LastError)
		}
	}
}

func synced(v *View) bool { return v.Connected && v.Synced }
func webEntry() *nodev1.Entry {
	return &nodev1.Entry{Name: "default/web", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/web",
		Selectors: []string{"unix:uid:1000"}, DnsNames: []string{"web.example.org"}, X509TtlSeconds: 600}
}

func TestFirstStart(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	p.SetEntry("web-2", &nodev1.Entry{Name: "default/db", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/db", Selectors: []string{"unix:uid:1"}})
	p.SetTrust("all", "crl", "default", p.Authority.CRL(t, 1))
	p.SetTrust("all", "heartbeat", "default", p.Authority.Heartbeat(t, 1))
	a := newAgent(t, p)
	a.start()
	v := a.until("synced", synced)
	if len(v.Entries) != 1 || v.Entries["default/web"].GetSpiffeId() != "spiffe://example.org/ns/default/sa/web" {
		t.Fatalf("entries %v; want this node's alone", v.Entries)
	}
	if v.Bundles["example.org"].GetSequence() != 1 || v.CRLs["default"].GetNumber() != 1 || v.Heartbeats["default"].GetCrlNumber() != 1 {
		t.Fatalf("bundles %v, CRLs %v, heartbeats %v", v.Bundles, v.CRLs, v.Heartbeats)
	}
	id, _ := a.Identity()
	if id.ID.String() != "spiffe://example.org/legation/agent/web-1" || id.Node != "web-1" {
		t.Fatalf("identity %s", id.ID)
	}
	csr, _ := nodetest.NewCSR(t, nil)
	results, err := a.SignX509(t.Context(), []*nodev1.X509Item{{Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/web", Csr: csr, Instance: "uid-1000"}})
	if err != nil || len(results[0].GetChain()) != 2 {
		t.Fatalf("%v, %v", results, err)
	}
	jwt, err := a.SignJWT(t.Context(), &nodev1.SignJWTRequest{Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/web", Audience: []string{"db"}})
	if err != nil || jwt.GetToken() == "" {
		t.Fatalf("%v, %v", jwt, err)
	}
	nodetest.Eventually(t, "everything is acknowledged", func() bool {
		for _, s := range p.Engine.Subscribers() {
			if s.ID == "node/web-1" && s.Behind == 0 && s.Held == 4 {
				return true
			}
		}
		return false
	})
	if c := p.Server.Connected(); len(c) != 1 || c[0].Node != "web-1" || c[0].Version != "test" {
		t.Fatalf("connected %v", c)
	}
}

func TestPinnedHash(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	a.params.Roots, a.params.BundleHash = nil, p.Authority.BundleHash()
	a.start()
	a.until("synced", synced)
}

func TestAgentDoesNotStart(t *testing.T) {
	p := nodetest.New(t)
	for name, row := range map[string]struct {
		change func(*Params)
		want   string
	}{
		"without a pin":               {func(p *Params) { p.Roots = nil }, "neither a bundle nor its hash is pinned"},
		"with a malformed hash":       {func(p *Params) { p.Roots, p.BundleHash = nil, "sha256:zz" }, "64 hex digits"},
		"without a server":            {func(p *Params) { p.Servers = nil }, "no server"},
		"with nothing to attest with": {func(p *Params) { p.Prover = nil }, "join token"},
		"with a wrong token": {func(p *Params) {
			p.Prover = attestnode.Proof(attestnode.JoinToken, []byte("web-1.aaaaaaaaaaaaa.bbbb"))
		}, "the join token is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, p)
			row.change(&a.params)
			err := New(a.params).Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("%v; want %q", err, row.want)
			}
		})
	}
}

func TestImpostorGetsNothing(t *testing.T) {
	real, impostor := nodetest.New(t), nodetest.New(t)
	for name, pin := range map[string]func(*Params){
		"by bundle": func(*Params) {},
		"by hash":   func(p *Params) { p.Roots, p.BundleHash = nil, real.Authority.BundleHash() },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, real)
			a.params.Servers = []string{impostor.Address}
			pin(&a.params)
			a.start()
			a.until("refused", func(v *View) bool { return strings.Contains(v.LastError, "handshake failed") })
			if id, _ := a.Identity(); id != nil {
				t.Fatal("it has an identity")
			}
		})
	}
}

func TestServerGoneAndBack(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	a := newAgent(t, p)
	a.start()
	a.until("synced", synced)
	p.Stop()
	a.until("down", func(v *View) bool { return !v.Connected && v.LastError != "" })
	if v, _ := a.View(); len(v.Entries) != 1 || !v.Synced {
		t.Fatal("the view was lost with the link")
	}
	if _, err := a.SignX509(t.Context(), nil); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("signing without a server: %v; want unavailable", err)
	}
	p.SetEntry("web-1", &nodev1.Entry{Name: "default/new", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/new", Selectors: []string{"unix:uid:1"}})
	p.Start()
	v := a.until("back", func(v *View) bool { return v.Connected && len(v.Entries) == 2 })
	if v.Entries["default/web"] == nil {
		t.Fatal("the old entry is gone")
	}
}

func TestStartFromCacheWhileServerIsAway(t *testing.T) {
	p := nodetest.New(t)
	p.SetEntry("web-1", webEntry())
	p.SetTrust("all", "crl", "default", p.Authority.CRL(t, 7))
	a := newAgent(t, p)
	a.start()
	a.until("synced", func(v *View) bool { return synced(v) && len(v.CRLs) == 1 })
	if err := a.stop(); err == nil {
		t.Fatal("no error from a cancelled run")
	}
	p.Stop()
	a.params.Prover = nil // the token is spent
	a.start()
	v := a.until("down, from cache", func(v *View) bool { return v.LastError != "" })
	if !v.Synced || v.Connected || v.Entries["default/web"] == nil || v.CRLs["default"].GetNumber() != 7 {
		t.Fatalf("synced %v, entries %v", v.Synced, v.Entries)
	}
	if id, _ := a.Identity(); id == nil || id.Node != "web-1" {
		t.Fatal("the identity was not cached")
	}
	p.Start()
	a.until("back without attesting", synced)
}

func TestNextReplicaIsTried(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := dead.Addr().String()
	dead.Close()
	a.params.Servers = []string{address, p.Address}
	a.start()
	a.until("synced", synced)
}
