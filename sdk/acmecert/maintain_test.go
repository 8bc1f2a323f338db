package acmecert

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/crypto/ocsp"
)

// shaky is a Storage that fails while it is told to.
type shaky struct {
	Storage
	fails atomic.Bool
}

func (s *shaky) Load(ctx context.Context, key string) ([]byte, error) {
	if s.fails.Load() {
		return nil, errors.New("the storage is away")
	}
	return s.Storage.Load(ctx, key)
}

// keep puts a certificate where a Manager of newManager looks for it.
func keep(t testing.TB, m *Manager, ca *testCA, name string, key *ecdsa.PrivateKey, leaf *x509.Certificate) {
	t.Helper()
	text, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(pair{Key: text, Certificate: pemOf(leaf, ca.certificate)})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.config.Storage.Store(t.Context(), pairKey(m.issuer.IssuerKey(), name), value); err != nil {
		t.Fatal(err)
	}
}

// step does what is due for a.test, as Run would.
func (m *Manager) stepOf(t testing.TB, name string) {
	t.Helper()
	magic, stop := m.magic()
	defer stop()
	m.step(t.Context(), magic, m.domains[name])
}

func TestAStorageThatWasAway(t *testing.T) {
	ca, key := newTestCA(t), newKey(t)
	storage := &shaky{Storage: &Memory{}}
	m := newManager(t, func(c *Config) { c.Storage, c.NoARI = storage, true })
	keep(t, m, ca, "a.test", key, ca.sign(key.Public(), nil, "a.test"))
	m.stepOf(t, "a.test")
	status := func() Status { return m.Status()[0] }
	if s := status(); s.Certificate == nil || s.Err != nil {
		t.Fatalf("%+v", s)
	}
	d := m.domains["a.test"]
	told := time.Now().Add(24 * time.Hour) // by the CA, with Retry-After
	d.nextTry = told
	storage.fails.Store(true)
	d.reloadAt = time.Time{}
	m.stepOf(t, "a.test")
	t.Run("is in the Status", func(t *testing.T) {
		if s := status(); s.Err == nil || s.Certificate == nil {
			t.Errorf("%+v", s)
		}
	})
	t.Run("does not shorten the time that the CA said", func(t *testing.T) {
		if !status().NextTry.Equal(told) {
			t.Errorf("the next attempt is at %s, the CA said %s", status().NextTry, told)
		}
	})
	storage.fails.Store(false)
	d.reloadAt = time.Time{}
	m.stepOf(t, "a.test")
	t.Run("is forgotten when it is back", func(t *testing.T) {
		if s := status(); s.Err != nil {
			t.Error(s.Err)
		}
	})
}

// revoker answers OCSP of a CA's certificates, with a status.
func revoker(t testing.TB, ca *testCA, status *atomic.Int64) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		der, err := ocsp.CreateResponse(ca.certificate, ca.certificate, ocsp.Response{
			Status: int(status.Load()), SerialNumber: ca.last.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour), RevokedAt: now,
		}, ca.key)
		if err != nil {
			t.Error(err)
		}
		w.Write(der)
	}))
	t.Cleanup(server.Close)
	return server
}

func TestAnOCSPResponse(t *testing.T) {
	ca, key := newTestCA(t), newKey(t)
	var says atomic.Int64
	responder := revoker(t, ca, &says)
	storage := &shaky{Storage: &Memory{}}
	m := newManager(t, func(c *Config) {
		c.Storage, c.NoARI, c.AllowOCSP = storage, true, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	defer m.staples.close()
	leaf := ca.sign(key.Public(), func(c *x509.Certificate) { c.OCSPServer = []string{responder.URL} }, "a.test")
	keep(t, m, ca, "a.test", key, leaf)
	m.stepOf(t, "a.test")
	d := m.domains["a.test"]
	if !m.Status()[0].Stapled {
		t.Fatal("none is shown")
	}
	t.Run("is kept fresh while the Storage is away", func(t *testing.T) {
		before := string(d.certificate.OCSPStaple)
		storage.fails.Store(true)
		defer storage.fails.Store(false)
		d.reloadAt, d.stapleAt = time.Time{}, time.Time{}
		m.stepOf(t, "a.test")
		if string(d.certificate.OCSPStaple) == before {
			t.Error("the one before is still shown")
		}
	})
	t.Run("that says again that one certificate is revoked does not put off the next", func(t *testing.T) {
		says.Store(ocsp.Revoked)
		for range 3 {
			d.stapleAt = time.Time{}
			m.staple(t.Context(), d)
		}
		if d.revocations != 1 || m.Status()[0].Stapled {
			t.Errorf("%d revocations of one certificate", d.revocations)
		}
		if due, _ := m.due(d); !due {
			t.Error("no other is ordered")
		}
	})
}

func TestAStartWithManyCertificatesAsksFewAtOnce(t *testing.T) {
	const many = 60
	ca, key := newTestCA(t), newKey(t)
	var now, most, infos atomic.Int64
	var server *httptest.Server
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(20 * time.Millisecond) // so that those who come together meet
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/dir" {
			json.NewEncoder(w).Encode(map[string]string{"newNonce": server.URL + "/n", "newAccount": server.URL + "/a", "newOrder": server.URL + "/o", "renewalInfo": server.URL + "/info"})
			return
		}
		infos.Add(1)
		w.Header().Set("Retry-After", "3600")
		json.NewEncoder(w).Encode(map[string]any{"suggestedWindow": map[string]time.Time{"start": time.Now().Add(20 * time.Hour), "end": time.Now().Add(21 * time.Hour)}})
	}))
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	m := newManager(t, func(c *Config) {
		c.Directory, c.RootCAs, c.Domains = server.URL+"/dir", pool, nil
		for i := range many {
			c.Domains = append(c.Domains, fmt.Sprintf("n%d.test", i))
		}
	})
	for _, name := range m.config.Domains {
		keep(t, m, ca, name, key, ca.sign(key.Public(), nil, name))
	}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(t.Context()) }()
	for deadline := time.Now().Add(time.Minute); infos.Load() < many && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if infos.Load() < many || most.Load() > maxAsks {
		t.Errorf("%d of %d were asked about, %d at once", infos.Load(), many, most.Load())
	}
}
