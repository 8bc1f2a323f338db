package acme

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
)

func says(m *acmecert.Manager, text string) bool {
	err := m.Status()[0].Err
	return err != nil && strings.Contains(err.Error(), text)
}

// longLived is one connection on which requests are made all the time.
type longLived struct {
	t        testing.TB
	conn     *tls.Conn
	reader   *bufio.Reader
	requests int
}

func (l *longLived) ask() {
	l.t.Helper()
	if _, err := io.WriteString(l.conn, "GET /health HTTP/1.1\r\nHost: one.test\r\n\r\n"); err != nil {
		l.t.Fatalf("after %d requests: %v", l.requests, err)
	}
	resp, err := http.ReadResponse(l.reader, nil)
	if err != nil {
		l.t.Fatalf("after %d requests: %v", l.requests, err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		l.t.Fatalf("after %d requests: %s", l.requests, resp.Status)
	}
	l.requests++
}

func TestARenewalDropsNoConnection(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	o := s.options()
	o.Validity = 60 // much longer than a renewal takes
	p := pebble.Start(t, o)
	c := s.config(p, "one.test")
	c.NoARI, c.RenewAt = true, 0.06
	s.manage(c)
	s.wait(patience)
	roots := p.Roots(t)
	conn, err := s.dial("one.test", roots)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	old := &longLived{t: t, conn: conn, reader: bufio.NewReader(conn)}
	first := conn.ConnectionState().PeerCertificates[0]
	seen := map[string]*x509.Certificate{serial(first): first}
	until(t, "three certificates were shown", func() bool {
		old.ask()
		leaf, err := s.leaf("one.test", roots)
		if err != nil {
			t.Fatalf("a handshake failed during a renewal: %v", err)
		}
		seen[serial(leaf)] = leaf
		return len(seen) == 3
	})
	if conn.ConnectionState().PeerCertificates[0] != first {
		t.Error("the connection changed its certificate")
	}
	old.ask()
	var keys []string
	for _, c := range seen {
		keys = append(keys, fmt.Sprintf("%x", c.RawSubjectPublicKeyInfo))
	}
	if keys[0] == keys[1] || keys[1] == keys[2] || keys[0] == keys[2] {
		t.Error("a key was used again")
	}
	t.Logf("%d requests on one connection over two renewals", old.requests)
}

func TestAFailingRenewalKeepsTheOldCertificate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	o := s.options()
	o.Validity = 60
	p := pebble.Start(t, o)
	f := newFront(t, p)
	c := s.config(p, "one.test")
	c.Directory, c.RootCAs, c.NoARI, c.RenewAt = f.Directory, f.TLS, true, 0.06
	m := s.manage(c)
	s.wait(patience)
	f.misbehave(nil, certificates(func([]byte) []byte { return []byte("garbage") }))
	until(t, "a renewal fails", func() bool { return says(m, "no certificate") })
	if _, err := s.leaf("one.test", p.Roots(t)); err != nil {
		t.Error("the old one is not shown:", err)
	}
	if status := m.Status()[0]; status.Certificate == nil || status.NextTry.IsZero() {
		t.Errorf("%+v", status)
	}
}

func TestAReplicaTakesTheCertificateThatAnotherRenewed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	c := s.config(p, "one.test")
	first := s.manage(c)
	replica := *s
	m := replica.run(c) // the same Storage; it serves nothing itself
	s.wait(patience)
	until(t, "both show one certificate", func() bool {
		a, b := first.Status()[0].Certificate, m.Status()[0].Certificate
		return a != nil && b != nil && serial(a) == serial(b)
	})
	if n := p.Log.Count("Issued certificate serial"); n != 1 {
		t.Errorf("%d certificates were issued", n)
	}
}

func TestTheCASaysWhenToRenew(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	o := s.options()
	o.Validity = 80
	p := pebble.Start(t, o)
	f := newFront(t, p)
	var replaces atomic.Int64 // orders that say what they replace
	f.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/order-plz") {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			var signed struct{ Payload string }
			_ = json.Unmarshal(body, &signed)
			if payload, _ := base64.RawURLEncoding.DecodeString(signed.Payload); bytes.Contains(payload, []byte(`"replaces":"`)) {
				replaces.Add(1)
			}
		}
		return false
	}, nil)
	c := s.config(p, "one.test")
	c.Directory, c.RootCAs = f.Directory, f.TLS
	c.RenewAt = 0.99 // so that only the CA can be the reason
	m := s.manage(c)
	s.wait(patience)
	first := m.Status()[0].Certificate
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Raw})
	window, _ := json.Marshal(map[string]any{"suggestedWindow": map[string]string{
		"start": time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), "end": time.Now().Add(-time.Minute).UTC().Format(time.RFC3339),
	}})
	body, _ := json.Marshal(map[string]string{"certificate": string(block), "ariResponse": string(window)})
	p.Post(t, "/set-renewal-info/", string(body))
	until(t, "it was renewed", func() bool { return serial(m.Status()[0].Certificate) != serial(first) })
	if left := time.Until(first.NotAfter); left < 10*time.Second {
		t.Errorf("it was renewed %s before its end, by itself", left)
	}
	if replaces.Load() == 0 { // RFC 9773 5
		t.Error("no order says which certificate it replaces")
	}
}

// responder answers OCSP for a Pebble's certificates.
type responder struct {
	URL    string
	mu     sync.Mutex
	status int
	asked  atomic.Int64
	answer func(serial *ocsp.Request) []byte
}

func newResponder(t testing.TB) *responder {
	t.Helper()
	r := &responder{status: ocsp.Good}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.asked.Add(1)
		body, err := io.ReadAll(io.LimitReader(req.Body, 10_000))
		if err != nil {
			return
		}
		parsed, err := ocsp.ParseRequest(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.answer == nil {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		w.Write(r.answer(parsed))
	}))
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

// of makes it answer for a Pebble.
func (r *responder) of(t testing.TB, p *pebble.Pebble) {
	t.Helper()
	block, _ := pem.Decode(p.Manage(t, "/intermediates/0"))
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(p.Manage(t, "/intermediate-keys/0"))
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = func(q *ocsp.Request) []byte {
		der, err := ocsp.CreateResponse(issuer, issuer, ocsp.Response{
			Status: r.status, SerialNumber: q.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
			RevokedAt: time.Now().Add(-time.Minute), IssuerHash: crypto.SHA1,
		}, key)
		if err != nil {
			t.Error(err)
		}
		return der
	}
}

func TestOCSPResponsesAreStapled(t *testing.T) {
	t.Parallel()
	r := newResponder(t)
	s := newSite(t)
	o := s.options()
	o.OCSP = r.URL
	p := pebble.Start(t, o)
	r.of(t, p)
	c := s.config(p, "one.test")
	c.AllowOCSP = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	m := s.manage(c)
	s.wait(patience)
	roots := p.Roots(t)
	until(t, "a good response is shown", func() bool {
		conn, err := s.dial("one.test", roots)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		state := conn.ConnectionState()
		if len(state.OCSPResponse) == 0 {
			return false
		}
		response, err := ocsp.ParseResponseForCert(state.OCSPResponse, state.PeerCertificates[0], state.PeerCertificates[1])
		return err == nil && response.Status == ocsp.Good && m.Status()[0].Stapled
	})
}

func TestACertificateThatTheCARevokedIsReplaced(t *testing.T) {
	t.Parallel()
	r := newResponder(t)
	s := newSite(t)
	o := s.options()
	o.OCSP = r.URL
	p := pebble.Start(t, o)
	r.of(t, p)
	r.mu.Lock()
	r.status = ocsp.Revoked
	r.mu.Unlock()
	c := s.config(p, "one.test")
	c.AllowOCSP = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	begun := time.Now()
	s.manage(c)
	s.wait(patience)
	issued := func() int { return p.Log.Count("Issued certificate serial") }
	until(t, "another was ordered", func() bool { return issued() >= 2 })
	// This CA says so of each: 0.2, 0.4, 0.8, … s, less a tenth, lie between the
	// orders after the second.
	until(t, "five were ordered", func() bool { return issued() >= 5 })
	if took := time.Since(begun); took < time.Second {
		t.Errorf("five certificates were ordered within %s of a CA that revokes each", took)
	}
}

func TestA08AResponderAtAPrivateAddressIsNotAsked(t *testing.T) {
	t.Parallel()
	r := newResponder(t)
	s := newSite(t)
	o := s.options()
	o.OCSP = r.URL
	p := pebble.Start(t, o)
	r.of(t, p)
	s.manage(s.config(p, "one.test"))
	s.wait(patience)
	until(t, "it says why", func() bool {
		return strings.Contains(s.Log.String(), "no OCSP response") && strings.Contains(s.Log.String(), "is refused")
	})
	if r.asked.Load() != 0 {
		t.Error("it was asked")
	}
	if _, err := s.leaf("one.test", p.Roots(t)); err != nil {
		t.Error("the certificate is not shown without:", err)
	}
}
