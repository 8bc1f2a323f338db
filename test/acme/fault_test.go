package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/test/acme/pebble"
)

// otherCA signs certificates that nobody asked for.
func otherCA(t testing.TB) func(key any, names ...string) []byte {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return func(key any, names ...string) []byte {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})...)
	}
}

// certificates makes after change what is downloaded.
func certificates(make func([]byte) []byte) func(*http.Response) error {
	return func(r *http.Response) error {
		if !strings.HasPrefix(r.Request.URL.Path, "/certZ/") || r.StatusCode != http.StatusOK {
			return nil
		}
		old, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		replaceBody(r, make(old))
		return nil
	}
}

func TestACAThatMisbehavesIsRefusedAndSaidWhy(t *testing.T) {
	elsewhere, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := otherCA(t)
	var plain atomic.Int64
	insecure := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { plain.Add(1) }))
	t.Cleanup(insecure.Close)
	at := func(path string, f func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, path) {
				f(w)
				return true
			}
			return false
		}
	}
	giant := strings.Repeat("x", 5<<20)
	for _, row := range []struct {
		name   string
		before func(http.ResponseWriter, *http.Request) bool
		after  func(*http.Response) error
		says   string
	}{
		{"a certificate for another key", nil, certificates(func([]byte) []byte { return other(elsewhere.Public(), "one.test") }), "another key"},
		{"a certificate for another name", nil, certificates(func(old []byte) []byte {
			block, _ := pem.Decode(old)
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil
			}
			return other(leaf.PublicKey, "evil.test")
		}), "evil.test"},
		{"a chain whose links do not hold", nil, certificates(func(old []byte) []byte {
			_, rest := pem.Decode(other(elsewhere.Public(), "x"))
			block, _ := pem.Decode(old)
			return append(pem.EncodeToMemory(block), rest...)
		}), "not signed by the next one"},
		{"a private key in the chain", nil, certificates(func(old []byte) []byte {
			return append(old, "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"...)
		}), "only certificates belong there"},
		{"garbage for a certificate", nil, certificates(func([]byte) []byte { return []byte("\x00\x01 no PEM") }), "no certificate"},
		{"PEM that takes long to read", nil, certificates(func([]byte) []byte { return bytes.Repeat([]byte("-----BEGIN \n"), 50_000) }), "longer than"},
		{"a chain that links up for ever", nil, func(r *http.Response) error {
			if strings.HasPrefix(r.Request.URL.Path, "/certZ/") {
				r.Header.Set("Link", fmt.Sprintf(`<https://%s%s>;rel="up"`, r.Request.Host, r.Request.URL.Path))
			}
			return nil
		}, ""},
		{"a redirect to http", at("/order-plz", func(w http.ResponseWriter) {
			w.Header().Set("Location", insecure.URL)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}), nil, "redirect"},
		{"a directory with an http URL", nil, func(r *http.Response) error {
			if r.Request.URL.Path == "/dir" {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				replaceBody(r, bytes.ReplaceAll(body, []byte("https://"), []byte("http://")))
			}
			return nil
		}, "https alone"},
		{"an http URL for the order's authorisation", nil, func(r *http.Response) error {
			if r.Request.URL.Path == "/order-plz" {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				replaceBody(r, bytes.ReplaceAll(body, []byte("https://"), []byte("http://")))
			}
			return nil
		}, "https alone"},
		{"garbage for a directory", at("/dir", func(w http.ResponseWriter) { io.WriteString(w, "<html>") }), nil, "not a JSON directory"},
		{"a directory without end", at("/dir", func(w http.ResponseWriter) { io.WriteString(w, giant) }), nil, "longer than"},
		{"a giant problem document", at("/order-plz", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"%s"}`, giant)
		}), nil, "longer than"},
		{"a long problem with terminal codes", at("/order-plz", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, `{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"\u001b[2J%s"}`, giant[:100_000])
		}), nil, "rejectedIdentifier"},
		{"a token that is a path", nil, func(r *http.Response) error {
			if strings.HasPrefix(r.Request.URL.Path, "/authZ/") {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				replaceBody(r, bytes.ReplaceAll(body, []byte(`"token": "`), []byte(`"token": "../../../../etc/cron.d/`)))
			}
			return nil
		}, "not base64url"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := pebble.Start(t, s.options())
			f := newFront(t, p)
			f.misbehave(row.before, row.after)
			c := s.config(p, "one.test")
			c.Directory, c.RootCAs, c.RetryAfter, c.Challenges = f.Directory, f.TLS, time.Second, []acmecert.Challenge{acmecert.HTTP01}
			m := s.manage(c)
			if row.says != "" {
				until(t, "the refusal says "+row.says, func() bool {
					err := m.Status()[0].Err
					return err != nil && strings.Contains(err.Error(), row.says)
				})
				if text := m.Status()[0].Err.Error(); len(text) > 4000 || strings.ContainsRune(text, 0x1b) {
					t.Errorf("the error has %d bytes, or a control character", len(text))
				}
				if _, err := s.dial("one.test", nil); err == nil {
					t.Error("something is shown")
				}
			}
			f.misbehave(nil, nil)
			s.wait(patience) // and it mends itself
			if _, err := s.leaf("one.test", p.Roots(t)); err != nil {
				t.Error(err)
			}
			if plain.Load() != 0 {
				t.Error("plain http was spoken")
			}
			if log := s.Log.String(); len(log) > 64<<10 || strings.ContainsRune(log, 0x1b) {
				t.Errorf("the log has %d bytes, or a control character", len(log))
			}
		})
	}
}

func TestACAThatHangsIsGivenUpInTime(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	f := newFront(t, p)
	f.misbehave(func(_ http.ResponseWriter, r *http.Request) bool { return f.hang(r) }, nil)
	c := s.config(p, "one.test")
	c.Directory, c.RootCAs, c.HTTPTimeout = f.Directory, f.TLS, 2*time.Second
	m := s.manage(c)
	begun := time.Now()
	until(t, "it says so", func() bool {
		err := m.Status()[0].Err
		return err != nil && strings.Contains(err.Error(), "fetch the directory")
	})
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	t.Run("in the middle of an order, too", func(t *testing.T) {
		f.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, "/order-plz") && f.hang(r)
		}, nil)
		until(t, "it says so", func() bool {
			err := m.Status()[0].Err
			return err != nil && strings.Contains(err.Error(), "order-plz")
		})
	})
	f.misbehave(nil, nil)
	s.wait(patience)
}

func TestARateLimitIsKept(t *testing.T) {
	for _, row := range []struct {
		name   string
		status int
	}{{"429 with Retry-After", http.StatusTooManyRequests}, {"503 with Retry-After", http.StatusServiceUnavailable}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := pebble.Start(t, s.options())
			f := newFront(t, p)
			var limited, told atomic.Int64
			f.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/order-plz") || limited.Load() != 0 && time.Now().UnixNano() >= told.Load() {
					return false
				}
				if limited.Add(1) == 1 {
					told.Store(time.Now().Add(3 * time.Second).UnixNano())
				}
				w.Header().Set("Retry-After", "3")
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(row.status)
				io.WriteString(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates"}`)
				return true
			}, nil)
			c := s.config(p, "one.test")
			c.Directory, c.RootCAs = f.Directory, f.TLS // RetryAfter of ours is 200 ms
			m := s.manage(c)
			until(t, "it is limited", func() bool { return limited.Load() > 0 })
			until(t, "it says so", func() bool {
				err := m.Status()[0].Err
				return err != nil && strings.Contains(err.Error(), "too many certificates")
			})
			before := f.count("/")
			for time.Now().UnixNano() < told.Load()-int64(200*time.Millisecond) {
				time.Sleep(50 * time.Millisecond)
			}
			// Only what was counted before that time is over says anything.
			if n := f.count("/"); n != before && time.Now().UnixNano() < told.Load() {
				t.Errorf("%d requests in the time for which it was told to wait", n-before)
			}
			s.wait(patience)
			if limited.Load() != 1 {
				t.Errorf("it was limited %d times", limited.Load())
			}
		})
	}
}

func TestOneCAThatHangsHoldsUpNoOtherManager(t *testing.T) {
	t.Parallel()
	dead := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(func() { dead.CloseClientConnections(); dead.Close() })
	stuck := newSite(t)
	pool := x509.NewCertPool()
	pool.AddCert(dead.Certificate())
	s := newSite(t)
	p := pebble.Start(t, s.options())
	c := stuck.config(p, "stuck.test")
	c.Directory, c.RootCAs = dead.URL+"/dir", pool
	stuck.manage(c)
	s.manage(s.config(p, "one.test"))
	s.wait(patience)
}

func TestA57AnAnswerOfANameServerEndsTheOrderAndNotTheProgram(t *testing.T) {
	soa := func(name string) dns.RR {
		return &dns.SOA{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "."}
	}
	for name, answer := range map[string]func(*dns.Msg) *dns.Msg{
		"empty": func(r *dns.Msg) *dns.Msg { m := new(dns.Msg); m.SetReply(r); return m },
		"without a question": func(r *dns.Msg) *dns.Msg {
			m := new(dns.Msg)
			m.Id, m.Response = r.Id, true
			m.Answer = []dns.RR{soa("test.")}
			return m
		},
		"of other types than asked for": func(r *dns.Msg) *dns.Msg {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{""}}, &dns.NULL{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeNULL, Class: dns.ClassINET}}}
			return m
		},
		"with the root as the zone": func(r *dns.Msg) *dns.Msg {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Answer = []dns.RR{soa(".")}
			return m
		},
		"with a CNAME to itself": func(r *dns.Msg) *dns.Msg {
			m := new(dns.Msg)
			m.SetReply(r)
			m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: r.Question[0].Name}}
			return m
		},
		"that refuses": func(r *dns.Msg) *dns.Msg { m := new(dns.Msg); return m.SetRcode(r, dns.RcodeRefused) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			p := pebble.Start(t, s.options())
			own := pebble.NewNames(t)
			own.Misanswer(answer)
			// A name of its own: certmagic remembers zones for the whole process.
			c := s.config(p, strings.NewReplacer(" ", "-").Replace(name)+".test")
			c.DNS = &acmecert.DNS{Provider: own, Resolvers: []string{own.Address}, PropagationTimeout: 3 * time.Second}
			m := s.manage(c)
			until(t, "the order fails", func() bool {
				err := m.Status()[0].Err
				return err != nil && strings.Contains(err.Error(), "order a certificate")
			})
		})
	}
}

func TestCloseInTheMiddleOfAnOrder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := pebble.Start(t, s.options())
	f := newFront(t, p)
	asked := make(chan struct{}, 100)
	f.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/finalize-order") {
			return false
		}
		asked <- struct{}{}
		return f.hang(r)
	}, nil)
	c := s.config(p, "one.test")
	c.Directory, c.RootCAs = f.Directory, f.TLS
	m := s.manage(c)
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatal("no order came so far")
	}
	begun := time.Now()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	f.misbehave(nil, nil)
	again, err := acmecert.New(c) // with the same Storage: no lock is left
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- again.Run(ctx) }()
	if err := again.Wait(ctx); err != nil { // the first answers its challenges from the shared Storage
		t.Error(err)
	}
	cancel()
	<-ended
}
