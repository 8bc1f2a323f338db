package identity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryHasNothingAtFirstAndSaysWhatItWaitsFor(t *testing.T) {
	var m identity.Memory
	s, changed, err := m.Current()
	var notReady *identity.NotReady
	if s != nil || changed == nil || !errors.As(err, &notReady) || notReady.Source == "" {
		t.Fatalf("%v, %v, %v", s, changed, err)
	}
	want := &identity.Snapshot{}
	m.Set(want)
	select {
	case <-changed:
	default:
		t.Error("nobody is woken")
	}
	if got, _, err := m.Current(); got != want || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	_, changed, _ = m.Current()
	gone := errors.New("gone")
	m.Fail(gone)
	<-changed
	if got, _, err := m.Current(); got != nil || err != gone {
		t.Errorf("after Fail: %v, %v", got, err)
	}
}

func TestMemoryAnswersWithoutAllocating(t *testing.T) {
	m := identity.NewMemory(&identity.Snapshot{})
	if n := testing.AllocsPerRun(100, func() { m.Current() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Many setters and readers at once: no change is missed, no channel is closed
// twice, and who waits sees the last.
func TestMemoryUnderManyWritersAndReaders(t *testing.T) {
	var m identity.Memory
	last := &identity.Snapshot{}
	var readers, writers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for {
				s, changed, err := m.Current()
				if s == last {
					return
				}
				if s == nil && err == nil {
					t.Error("neither a snapshot nor an error")
				}
				select {
				case <-changed:
				case <-time.After(time.Minute):
					t.Error("a change was missed")
					return
				}
			}
		})
	}
	for n := range 8 {
		writers.Go(func() {
			for range 500 {
				if n%2 == 0 {
					m.Set(&identity.Snapshot{})
				} else {
					m.Fail(errors.New("away"))
				}
			}
		})
	}
	writers.Wait()
	m.Set(last)
	readers.Wait()
}

func TestWait(t *testing.T) {
	var m identity.Memory
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := identity.Wait(ctx, &m); err == nil || !strings.Contains(err.Error(), "enough") || !strings.Contains(err.Error(), "waiting for") {
		t.Errorf("it says %v", err)
	}
	want := &identity.Snapshot{}
	go func() {
		m.Fail(errors.New("not yet"))
		m.Set(want)
	}()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if got, err := identity.Wait(ctx, &m); got != want || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNotReadySaysWhy(t *testing.T) {
	inner := errors.New("connection refused")
	e := &identity.NotReady{Source: "unix:///run/agent.sock"}
	if !strings.Contains(e.Error(), "unix:///run/agent.sock") || errors.Unwrap(e) != nil {
		t.Error(e)
	}
	e.Err = inner
	if !strings.Contains(e.Error(), "connection refused") || !errors.Is(e, inner) {
		t.Error(e)
	}
}

func TestPeerOf(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	good := d.Issue("/a", nil).Leaf
	two := d.Issue("/a", func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "b", Path: "/c"}) }).Leaf
	other := d.Issue("/a", func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: "b"}} }).Leaf
	none := d.Issue("/a", func(c *x509.Certificate) { c.URIs = nil }).Leaf
	for _, tt := range []struct {
		name  string
		state *tls.ConnectionState
		ok    bool
	}{
		{"no TLS", nil, false},
		{"no certificate", &tls.ConnectionState{HandshakeComplete: true}, false},
		{"a handshake under way", &tls.ConnectionState{PeerCertificates: []*x509.Certificate{good}}, false},
		{"a peer", &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{good}}, true},
		{"two names", &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{two}}, false},
		{"another name", &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{other}}, false},
		{"no name", &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{none}}, false},
	} {
		p, err := identity.PeerOf(tt.state)
		if (err == nil) != tt.ok || tt.ok && (p.ID != d.ID("/a") || p.Certificate != good) {
			t.Errorf("%s: %v, %v", tt.name, p.ID, err)
		}
	}
	if _, ok := identity.PeerFromContext(t.Context()); ok {
		t.Error("a peer out of nothing")
	}
	type (
		key  struct{}
		key2 struct{}
	)
	ctx := context.WithValue(identity.ContextWithPeer(context.WithValue(t.Context(), key{}, 1), identity.Peer{ID: d.ID("/a"), Certificate: good}), key2{}, 2)
	if p, ok := identity.PeerFromContext(ctx); !ok || p.ID != d.ID("/a") || ctx.Value(key{}) != 1 {
		t.Errorf("from a context: %v, %v", p.ID, ok)
	}
	inner, cancel := context.WithCancel(ctx)
	cancel()
	if inner.Err() == nil || ctx.Err() != nil {
		t.Error("cancelling")
	}
}

// files are a certificate as files hold it.
func files(t testing.TB, d *pkitest.Domain, cert *tls.Certificate) identity.PEM {
	t.Helper()
	p := identity.PEM{Bundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.Root().Cert.Raw})}
	for _, der := range cert.Certificate {
		p.Certificate = append(p.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	p.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for _, der := range d.CRLs() {
		p.CRLs = append(p.CRLs, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return p
}

// believed verifies a snapshot's own certificate by its own trust.
func believed(t testing.TB, s *identity.Snapshot) {
	t.Helper()
	chain := make([]*x509.Certificate, len(s.Certificate.Certificate))
	for n, der := range s.Certificate.Certificate {
		var err error
		if chain[n], err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	r, err := chaincheck.Verify(chaincheck.Params{Chain: chain, Roots: s.Trust.Roots, CRLs: s.Trust.CRLs, Usage: chaincheck.Any})
	if err != nil || r.ID != s.ID || s.ID.IsZero() || s.Certificate.Leaf == nil {
		t.Errorf("%v, %v", s.ID, err)
	}
}

func TestFromPEM(t *testing.T) {
	d, foreign := pkitest.New(t, "example.org", nil), pkitest.New(t, "other.example", nil)
	cert := d.Issue("/a", nil)
	p := files(t, d, cert)
	key := p.Key
	p.Federated = map[spiffeid.TrustDomain][]byte{foreign.TrustDomain: files(t, foreign, foreign.Issue("/x", nil)).Bundle}
	s, err := p.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	believed(t, s)
	if len(s.Trust.Roots) != 2 || !bytes.Equal(key, make([]byte, len(key))) {
		t.Errorf("%d trust domains; the key's text is wiped: %v", len(s.Trust.Roots), bytes.Equal(key, make([]byte, len(key))))
	}
	for _, tt := range []struct {
		name string
		bend func(*identity.PEM)
		want string // empty: taken
	}{
		{"no CRLs", func(p *identity.PEM) { p.CRLs = nil }, ""},
		{"roots alone, with their domain", func(p *identity.PEM) { p.Certificate, p.Key, p.TrustDomain = nil, nil, d.TrustDomain }, ""},
		{"roots of nobody", func(p *identity.PEM) { p.Certificate, p.Key = nil, nil }, "neither a certificate nor a TrustDomain"},
		{"an EC key after its parameters", func(p *identity.PEM) {
			p.Key = append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), p.Key...)
		}, ""},
		{"the key of another", func(p *identity.PEM) { p.Key = files(t, d, d.Issue("/a", nil)).Key }, "not that of the certificate"},
		{"no key", func(p *identity.PEM) { p.Key = nil }, "the private key: no PEM block"},
		{"no certificate", func(p *identity.PEM) { p.Certificate = nil }, "the certificate: no PEM block"},
		{"no bundle", func(p *identity.PEM) { p.Bundle = nil }, "the bundle of example.org: no PEM block"},
		{"a key among certificates", func(p *identity.PEM) { p.Certificate = append(p.Certificate, files(t, d, d.Issue("/a", nil)).Key...) }, `"PRIVATE KEY" among`},
		{"another domain than said", func(p *identity.PEM) { p.TrustDomain = foreign.TrustDomain }, "said to be"},
		{"its own domain federated", func(p *identity.PEM) { p.Federated = map[spiffeid.TrustDomain][]byte{d.TrustDomain: p.Bundle} }, "whose roots are Bundle's"},
		{"a certificate without a SPIFFE ID", func(p *identity.PEM) {
			*p = files(t, d, d.Issue("/a", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"x"} }))
		}, "no X.509-SVID"},
		{"a broken certificate", func(p *identity.PEM) {
			p.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
		}, "certificate 1 of 1 does not parse"},
		{"a broken list", func(p *identity.PEM) { p.CRLs = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("x")}) }, "CRL 0"},
		{"too much", func(p *identity.PEM) { p.Bundle = bytes.Repeat([]byte("\n"), 5<<20) }, "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := files(t, d, cert)
			tt.bend(&p)
			s, err := p.Snapshot()
			if tt.want == "" && (err != nil || s == nil) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("want %q, got %v", tt.want, err)
			}
			if !bytes.Equal(p.Key, make([]byte, len(p.Key))) {
				t.Error("the key's text is not wiped")
			}
		})
	}
}

func TestFromX509SVID(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	cert := d.Issue("/a", nil)
	p := files(t, d, cert)
	svid, err := x509svid.Parse(p.Certificate, bytes.Clone(p.Key))
	if err != nil {
		t.Fatal(err)
	}
	set := x509bundle.NewSet(x509bundle.FromX509Authorities(d.TrustDomain, []*x509.Certificate{d.Root().Cert}))
	s, err := identity.FromX509SVID(svid, set, d.CRLs())
	if err != nil {
		t.Fatal(err)
	}
	believed(t, s)
	if s, err := identity.FromX509SVID(nil, set, nil); err != nil || s.Certificate != nil || s.Trust == nil {
		t.Errorf("one that only verifies: %v", err)
	}
	other := d.Issue("/b", nil)
	for name, bad := range map[string]*x509svid.SVID{
		"no certificates": {ID: svid.ID, PrivateKey: svid.PrivateKey},
		"no key":          {ID: svid.ID, Certificates: svid.Certificates},
		"another's key":   {ID: svid.ID, Certificates: []*x509.Certificate{other.Leaf}, PrivateKey: svid.PrivateKey},
	} {
		if _, err := identity.FromX509SVID(bad, set, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := identity.FromX509SVID(svid, nil, nil); err == nil {
		t.Error("no bundle: taken")
	}
	if _, err := identity.FromX509SVID(svid, set, [][]byte{{1}}); err == nil {
		t.Error("a broken list: taken")
	}
}

func FuzzPEM(f *testing.F) {
	d := pkitest.New(f, "example.org", nil)
	p := files(f, d, d.Issue("/a", nil))
	f.Add(p.Certificate, p.Key, p.Bundle, p.CRLs)
	f.Add([]byte(nil), []byte(nil), p.Bundle, []byte(nil))
	f.Fuzz(func(t *testing.T, cert, key, bundle, crls []byte) {
		s, err := identity.PEM{Certificate: cert, Key: bytes.Clone(key), Bundle: bundle, CRLs: crls}.Snapshot()
		if err == nil && (s == nil || s.Trust == nil || s.Certificate != nil && (s.ID.IsZero() || s.Certificate.Leaf == nil)) {
			t.Error("half a snapshot")
		}
	})
}
