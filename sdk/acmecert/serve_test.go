package acmecert

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/legation-io/legation/sdk/identity"
)

func newManager(t testing.TB, change func(*Config)) *Manager {
	t.Helper()
	c := Config{Domains: []string{"a.test", "b.test"}, TermsAgreed: true, Directory: "https://ca.test/dir", Storage: &Memory{}, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func present(t testing.TB, m *Manager, kind Challenge, domain, token string) {
	t.Helper()
	if err := (solver{kind, m.challenges}).Present(t.Context(), acme.Challenge{
		Identifier: acme.Identifier{Type: "dns", Value: domain}, Token: token, KeyAuthorization: token + ".thumb",
	}); err != nil {
		t.Fatal(err)
	}
}

func get(m http.Handler, method, host, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "http://a.test/", nil)
	r.Host = host
	if u, err := url.ParseRequestURI(path); err == nil {
		r.URL = u
	} else {
		r.URL = &url.URL{Path: path}
	}
	m.ServeHTTP(w, r)
	return w
}

func TestAChallengeIsAnsweredBy(t *testing.T) {
	shared := &Memory{}
	m := newManager(t, func(c *Config) { c.Storage = shared })
	replica := newManager(t, func(c *Config) { c.Storage = shared })
	const token = "dG9rZW4"
	present(t, m, HTTP01, "a.test", token)
	for name, who := range map[string]*Manager{"the Manager that ordered": m, "a replica that shares the Storage": replica} {
		t.Run(name, func(t *testing.T) {
			h := who.HTTPHandler(http.NotFoundHandler())
			for _, host := range []string{"a.test", "A.test:80", "a.test."} {
				if w := get(h, "GET", host, challengePath+token); w.Code != 200 || w.Body.String() != token+".thumb" {
					t.Errorf("%s: %d %q", host, w.Code, w.Body)
				}
			}
			for _, row := range []struct{ host, token string }{{"b.test", token}, {"elsewhere.test", token}, {"a.test", "another"}} {
				if w := get(h, "GET", row.host, challengePath+row.token); w.Code != 404 || strings.Contains(w.Body.String(), "thumb") {
					t.Errorf("%v: %d %q", row, w.Code, w.Body)
				}
			}
		})
	}
	t.Run("nobody when it is over", func(t *testing.T) {
		if err := (solver{HTTP01, m.challenges}).CleanUp(t.Context(), acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: "a.test"}, Token: token}); err != nil {
			t.Fatal(err)
		}
		for _, who := range []*Manager{m, replica} {
			if w := get(who.HTTPHandler(nil), "GET", "a.test", challengePath+token); w.Code != 404 {
				t.Errorf("%d %q", w.Code, w.Body)
			}
		}
	})
}

func TestStrangersCannotMakeManyLookups(t *testing.T) {
	counting := &countingStorage{Storage: &Memory{}}
	m := newManager(t, func(c *Config) { c.Storage = counting })
	h := m.HTTPHandler(nil)
	begun := time.Now()
	done := make(chan struct{})
	for range 200 {
		go func() { get(h, "GET", "a.test", challengePath+"dG9rZW4"); done <- struct{}{} }()
	}
	for range 200 {
		<-done
	}
	if most := int(time.Since(begun)/lookupEvery) + 2; counting.loads() > most {
		t.Errorf("%d lookups in %s", counting.loads(), time.Since(begun))
	}
	for range 50 {
		get(h, "GET", "elsewhere.test", challengePath+"dG9rZW4")
	}
	if n := counting.loads(); n > int(time.Since(begun)/lookupEvery)+2 {
		t.Errorf("names that are not ours are looked up: %d", n)
	}
}

func TestTLSALPNIsAnsweredOnlyWhenAskedForAlone(t *testing.T) {
	m := newManager(t, nil)
	present(t, m, TLSALPN01, "a.test", "dG9rZW4")
	hello := func(name string, protos ...string) *tls.ClientHelloInfo {
		return &tls.ClientHelloInfo{ServerName: name, SupportedProtos: protos}
	}
	c, err := m.GetCertificate(hello("a.test", acmez.ACMETLS1Protocol))
	if err != nil || c.Leaf == nil && len(c.Certificate) == 0 {
		t.Fatal(err)
	}
	for _, h := range []*tls.ClientHelloInfo{hello("a.test", acmez.ACMETLS1Protocol, "h2"), hello("b.test", acmez.ACMETLS1Protocol), hello("", acmez.ACMETLS1Protocol)} {
		if c, err := m.GetCertificate(h); err == nil {
			t.Errorf("%q %q got %v", h.ServerName, h.SupportedProtos, c)
		}
	}
}

func TestPlainHTTPIsSentToHTTPSOnlyForNamesWithACertificate(t *testing.T) {
	m := newManager(t, nil)
	h := m.HTTPHandler(nil)
	if w := get(h, "GET", "evil.test", "/x"); w.Code != 404 {
		t.Error(w.Code, w.Header())
	}
	m.show("a.test", selfSigned(t, "a.test", time.Hour))
	if w := get(h, "GET", "a.test", "/x?y=1"); w.Code != 308 || w.Header().Get("Location") != "https://a.test/x?y=1" {
		t.Error(w.Code, w.Header())
	}
	// What is no path would become a part of the host.
	for _, line := range []string{"GET http:@evil.test/ HTTP/1.1", "GET x:.evil.test/ HTTP/1.1", "OPTIONS * HTTP/1.1"} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line + "\r\nHost: a.test\r\n\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 400 || w.Header().Get("Location") != "" {
			t.Errorf("%s: %d, to %q", line, w.Code, w.Header().Get("Location"))
		}
	}
	wild := newManager(t, func(c *Config) { c.Domains, c.DNS = []string{"*.w.test"}, &DNS{Provider: noProvider{}} })
	wild.show("*.w.test", selfSigned(t, "*.w.test", time.Hour))
	for host, code := range map[string]int{"x.w.test": 308, "w.test": 404, "y.x.w.test": 404} {
		if w := get(wild.HTTPHandler(nil), "GET", host, "/"); w.Code != code {
			t.Error(host, w.Code)
		}
	}
}

// FuzzChallengePaths: whatever is asked for, nothing but a waiting token's
// authorization is answered, and no name of the Storage is made of it.
func FuzzChallengePaths(f *testing.F) {
	for _, seed := range []string{"dG9rZW4", "../../../etc/passwd", "..%2f..%2fetc", "", "a/b", "dG9rZW4?x", "<script>", "\x00", strings.Repeat("a", 300)} {
		f.Add(seed, "a.test")
	}
	counting := &countingStorage{Storage: &Memory{}}
	m := newManager(f, func(c *Config) { c.Storage = counting })
	m.challenges.own[challengeKey(HTTP01, "a.test")] = &presented{Token: "dG9rZW4", KeyAuthorization: "dG9rZW4.thumb"}
	h := m.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "next") }))
	f.Fuzz(func(t *testing.T, asked, host string) {
		if hostOf(host) == "b.test" {
			return // looked up in the Storage, 100 ms each
		}
		r := httptest.NewRequest("GET", "http://a.test/", nil)
		r.Host, r.URL = host, &url.URL{Path: challengePath + asked}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		answered := strings.Contains(w.Body.String(), "thumb")
		if answered != (asked == "dG9rZW4" && hostOf(host) == "a.test") {
			t.Fatalf("%q at %q: %d %q", asked, host, w.Code, w.Body)
		}
		if asked != "" && len(asked) > 8 && strings.Contains(w.Body.String(), asked) && !strings.Contains("no challenge with this token waits for this name\nnot an ACME challenge token (RFC 8555 8.3)", asked) {
			t.Fatalf("the answer repeats %q", asked)
		}
		if counting.loads() != 0 {
			t.Fatalf("%q at %q was looked up", asked, host)
		}
	})
}

func TestHandshakesAllocateNothing(t *testing.T) {
	m := newManager(t, nil)
	m.show("a.test", selfSigned(t, "a.test", time.Hour))
	hello := &tls.ClientHelloInfo{ServerName: "a.test", SupportedProtos: []string{"h2", "http/1.1"}}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := m.GetCertificate(hello); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestACertificateIsChosenByName(t *testing.T) {
	m := newManager(t, func(c *Config) {
		c.Domains = []string{"a.test", "*.w.test"}
		c.DNS = &DNS{Provider: noProvider{}}
	})
	a, w := selfSigned(t, "a.test", time.Hour), selfSigned(t, "*.w.test", time.Hour)
	m.show("a.test", a)
	if s := m.Status(); s[0].Err != nil || s[1].Err == nil {
		t.Errorf("%+v", s)
	}
	if _, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: "x.w.test"}); !errors.As(err, new(*identity.NotReady)) || !strings.Contains(err.Error(), "acmecert: *.w.test: no identity yet") {
		t.Error(err)
	}
	m.show("*.w.test", w)
	for name, want := range map[string]*tls.Certificate{"a.test": a, "A.TEST": a, "a.test.": a, "": a, "x.w.test": w, "X.W.test": w, "w.test": nil, "y.x.w.test": nil, ".w.test": nil, "b.test": nil} {
		got, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if got != want || (want == nil) != (err != nil) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAServerWithAnotherIdentityShowsItToThoseWhoDoNotAskForADomain(t *testing.T) {
	m := newManager(t, nil)
	a := selfSigned(t, "a.test", time.Hour)
	m.show("a.test", a)
	for name, want := range map[string]*tls.Certificate{"A.test.": a, "": nil, "10.0.0.1": nil, "elsewhere.test": nil} {
		if got, err := m.PublicCertificate(&tls.ClientHelloInfo{ServerName: name}); got != want || err != nil {
			t.Errorf("%q: %v %v", name, got, err)
		}
	}
	if _, err := m.PublicCertificate(&tls.ClientHelloInfo{ServerName: "b.test"}); err == nil {
		t.Error("a domain whose certificate is yet to come is answered by another identity")
	}
}
