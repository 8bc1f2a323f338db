package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/latest"
)

// world is a manager with a control plane in the same process, whose clock is
// true while the manager's may be skewed.
type world struct {
	t     *testing.T
	m     *Manager
	clock *clock.Skewed
	view  latest.Value[*upstream.View]
	stop  func()

	key  *ecdsa.PrivateKey
	root *x509.Certificate

	mu      sync.Mutex // guards what follows
	ttl     time.Duration
	delay   time.Duration // of each call
	down    bool
	old     bool                       // it does not know further claims
	refuse  map[string]*nodev1.Refusal // by entry
	mangle  func(*x509.Certificate)    // what a faulty signer would do
	batches []int
	tokens  int
	serial  int64
}

func (w *world) View() (*upstream.View, <-chan struct{}) { return w.view.Load() }

// newWorld must be called in a synctest bubble; run starts the manager.
func newWorld(t *testing.T) *world {
	w := &world{t: t, clock: &clock.Skewed{}, ttl: 24 * time.Hour, refuse: map[string]*nodev1.Refusal{}}
	w.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &w.key.PublicKey, w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.root, _ = x509.ParseCertificate(der)
	w.view.Store(&upstream.View{
		TrustDomain: "example.org", Synced: true, Connected: true,
		Entries: map[string]*nodev1.Entry{},
		Bundles: map[string]*nodev1.Bundle{"example.org": {TrustDomain: "example.org", X509Roots: [][]byte{der}, Jwks: []byte(`{"keys":[]}`)}},
	})
	return w
}

func (w *world) run(p Params) *Manager {
	p.Views, p.Signer, p.Clock = w, w, w.clock
	m := New(p)
	w.m = m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := m.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	w.stop = sync.OnceFunc(func() { cancel(); <-ended })
	synctest.Wait()
	return m
}

// change makes the next View from the present one.
func (w *world) change(f func(v *upstream.View)) {
	v := *w.view.Get()
	v.Entries = maps.Clone(v.Entries)
	v.Revocations = maps.Clone(v.Revocations)
	if v.Revocations == nil {
		v.Revocations = map[string]*nodev1.Revocation{}
	}
	f(&v)
	w.view.Store(&v)
	synctest.Wait()
}

func (w *world) declare(entries ...*nodev1.Entry) {
	w.change(func(v *upstream.View) {
		for _, e := range entries {
			v.Entries[e.Name] = e
		}
	})
}

func entry(name, selector string) *nodev1.Entry {
	return &nodev1.Entry{Name: "default/" + name, Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/" + name, Selectors: []string{selector}}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) calls() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]int(nil), w.batches...)
}

func (w *world) SignX509(ctx context.Context, items []*nodev1.X509Item) ([]*nodev1.X509Result, error) {
	w.mu.Lock()
	w.batches = append(w.batches, len(items))
	delay, down := w.delay, w.down
	w.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if down {
		return nil, fault.New(fault.Unavailable, "no replica answers")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var results []*nodev1.X509Result
	for _, i := range items {
		if r := w.refuse[i.Entry]; r != nil {
			results = append(results, &nodev1.X509Result{Refusal: r})
			continue
		}
		csr, err := x509.ParseCertificateRequest(i.Csr)
		if err == nil {
			err = csr.CheckSignature()
		}
		if err == nil && (len(csr.URIs) != 1 || csr.URIs[0].String() != i.SpiffeId) {
			err = fmt.Errorf("csr names %v", csr.URIs)
		}
		if err != nil {
			return nil, err
		}
		w.serial++
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(0x100 + w.serial), URIs: csr.URIs, NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(w.ttl)}
		for _, ip := range i.IpAddresses {
			tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip))
		}
		if e := w.view.Get().Entries[i.Entry]; e != nil {
			tmpl.DNSNames = e.DnsNames
		}
		pub := csr.PublicKey
		if w.mangle != nil {
			tmpl.PublicKey = pub
			w.mangle(tmpl)
			pub = tmpl.PublicKey
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, w.root, pub, w.key)
		if err != nil {
			return nil, err
		}
		results = append(results, &nodev1.X509Result{Chain: [][]byte{der}})
	}
	return results, nil
}

func (w *world) SignJWT(_ context.Context, r *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return nil, fault.New(fault.Unavailable, "no replica answers")
	}
	w.tokens++
	return &nodev1.SignJWTResponse{Token: fmt.Sprintf("token-%d-%s-%v", w.tokens, r.SpiffeId, r.Audience), ExpiresAtUnix: time.Now().Add(5 * time.Minute).Unix(), Ext: len(r.Ext) > 0 && !w.old}, nil
}

func (w *world) Explain(context.Context, *nodev1.ExplainRequest) (*nodev1.ExplainResponse, error) {
	return &nodev1.ExplainResponse{Candidates: []*nodev1.Candidate{{Entry: "default/elsewhere", SpiffeId: "spiffe://example.org/ns/default/sa/elsewhere", Reason: "it is an entry of node-2"}}}, nil
}

// next expects an Update soon, by the bubble's clock.
func (w *world) next(s *Subscription) *Update {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	u, err := s.Next(ctx)
	if err != nil {
		w.t.Fatalf("Next: %v", err)
	}
	for _, v := range u.SVIDs {
		if !w.clock.Now().Before(v.NotAfter) {
			w.t.Errorf("an expired SVID of %s was handed out", v.ID)
		}
	}
	return u
}

// quiet expects no Update for d.
func (w *world) quiet(s *Subscription, d time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if u, err := s.Next(ctx); err == nil {
		w.t.Fatalf("an Update nobody waits for: %v pending %v", ids(u), u.Pending)
	} else if ctx.Err() == nil {
		w.t.Fatalf("Next: %v", err)
	}
}

func ids(u *Update) []string {
	var all []string
	for _, v := range u.SVIDs {
		all = append(all, v.ID.Path()+" "+v.Serial)
	}
	return all
}

// inBubble runs a test with fake time and ends the manager at its end.
func inBubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.stop = func() {}
		defer func() { w.stop() }()
		f(w)
	})
}

func addrs(all ...string) func() []netip.Addr {
	return func() []netip.Addr {
		var out []netip.Addr
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
}
