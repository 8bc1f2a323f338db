package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/internal/suites"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestCloseEndsWhatWaitsAndLeavesWhatWasAccepted(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))})
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := dd.DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	mine := <-accepted
	defer mine.Close()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	unaccepted, err := dd.DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("Close took %s", took)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	for range 2 {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	}
	closed(t, silent)
	closed(t, unaccepted)
	go io.Copy(mine, mine)
	open(t, c)
	// What was accepted is watched still.
	d.Deny(chaincheck.Denial{ID: d.ID(web), Reason: "stolen", At: time.Now()})
	closed(t, c)
}

func TestAListenerThatWasNeverAcceptedFromCloses(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

// flaky is a listener that runs out of files now and then.
type flaky struct {
	net.Listener
	failures atomic.Int32
	fatal    atomic.Bool
}

type passing struct{}

func (passing) Error() string   { return "too many open files" }
func (passing) Timeout() bool   { return false }
func (passing) Temporary() bool { return true }

func (f *flaky) Accept() (net.Conn, error) {
	if f.fatal.Load() {
		return nil, errors.New("the network is gone")
	}
	if f.failures.Add(-1) >= 0 {
		return nil, passing{}
	}
	return f.Listener.Accept()
}

func TestErrorsOfTheListenerBelow(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flaky{Listener: inner}
	f.failures.Store(3)
	l, err := mtls.NewListener(f, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))})
	var client sync.WaitGroup
	client.Go(func() {
		if c, err := dd.DialContext(context.Background(), "tcp", l.Addr().String()); err != nil {
			t.Errorf("errors that pass: %v", err)
		} else {
			c.Close()
		}
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("errors that pass: %v", err)
	}
	client.Wait()
	c.Close()
	f.fatal.Store(true)
	go func() { // wakes the Accept that waits below
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
		}
	}()
	if _, err := l.Accept(); err == nil || err.Error() != "the network is gone" {
		t.Errorf("an error that stays: %v", err)
	}
}

// publicCert is a server's certificate of the web PKI.
func publicCert(t *testing.T, d *pkitest.Domain, names ...string) *tls.Certificate {
	return d.Issue("/unused", func(c *x509.Certificate) {
		c.URIs, c.DNSNames = nil, names
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.NotAfter = c.NotBefore.Add(90 * 24 * time.Hour)
	})
}

func TestAPublicCertificateChangesNothingForClients(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	web3 := pkitest.New(t, "public.example", nil) // stands for a public CA
	cert := publicCert(t, web3, "model.example.com", "localhost")
	l, seen := echo(t, mtls.ServerConfig{
		Source: d.Source(model), Authorize: mtls.AuthorizeID(d.ID(web)), MaxLifetime: -1,
		Certificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			switch {
			case strings.HasSuffix(hello.ServerName, ".example.com"):
				return cert, nil
			case hello.ServerName == "broken.test":
				return nil, errors.New("no certificate for broken.test yet")
			}
			return nil, nil // the Source's
		},
	})
	roots := []*x509.Certificate{web3.Root().Cert}
	public := func(change func(*mtls.ClientConfig)) mtls.ClientConfig {
		c := mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeServerName(roots), Revocation: chaincheck.Prefer, ServerName: "model.example.com"}
		if change != nil {
			change(&c)
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		config mtls.ClientConfig
		want   handshake.Cause // at the client
		server handshake.Cause
	}{
		{"by the public name", public(nil), "", ""},
		{"by the public name, with revocation required", public(func(c *mtls.ClientConfig) { c.Revocation = chaincheck.Require }), handshake.RevocationUnknown, ""},
		{"by another name of the same domain", public(func(c *mtls.ClientConfig) { c.ServerName = "other.example.com" }), handshake.WrongSAN, ""},
		{"by an SVID where the server presents the public one", mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), MaxLifetime: -1, ServerName: "model.example.com"}, handshake.WrongSAN, ""},
		{"by an SVID where the server presents its own", mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))}, "", ""},
		{"by a client that is not let in", public(func(c *mtls.ClientConfig) { c.Source = d.Source("/other") }), handshake.Rejected, handshake.Unauthorized},
		{"by a client without a certificate", public(func(c *mtls.ClientConfig) { c.Source = identity.NewMemory(d.With(nil)) }), handshake.NoCertificate, handshake.NoCertificate},
		{"by a client with a public certificate", public(func(c *mtls.ClientConfig) { c.Source = identity.NewMemory(d.With(cert)) }), handshake.Rejected, handshake.WrongSAN},
		{"by a name whose certificate is not there", mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), ServerName: "broken.test"}, handshake.PeerInternal, handshake.Other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen.mu.Lock()
			seen.failed = nil
			seen.mu.Unlock()
			c, err := dial(t, dialer(t, tt.config), l.Addr().String())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := mtls.PeerOf(c); ok != (tt.config.ServerName == "") {
					t.Errorf("the client has a peer: %v", ok)
				}
				return
			}
			wantCause(t, err, tt.want)
			if tt.server != "" {
				seen.says(t, tt.server)
			}
		})
	}
}

func TestAuthorizationByHost(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, _ := echo(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{
		"LocalHost": {d.ID(model)}, "127.0.0.1": {d.ID("/ns/ml/sa/model-b")},
	})})
	if _, err := dial(t, dd, "localhost:"+port); err != nil {
		t.Error(err)
	}
	if _, err := dial(t, dd, "LOCALHOST:"+port); err != nil {
		t.Error(err)
	}
	_, err := dial(t, dd, "127.0.0.1:"+port)
	wantCause(t, err, handshake.WrongName, `"127.0.0.1"`, "model-b")
	_, err = dd.DialContext(context.Background(), "tcp", "nowhere.test:1")
	if err == nil || !strings.Contains(err.Error(), `"nowhere.test"`) || !strings.Contains(err.Error(), "localhost") {
		t.Errorf("a host that is not named: %v", err)
	}
}

// A host that one part does not name may be let in by another part, and only
// what no part can let in is refused before anything is dialled.
func TestAuthorizationByHostAmongOthers(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, _ := echo(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	at := func(hosts ...string) mtls.Authorizer {
		ids := map[string][]spiffeid.ID{}
		for _, host := range hosts {
			ids[host] = []spiffeid.ID{d.ID(model)}
		}
		return mtls.AuthorizeHosts(ids)
	}
	for _, tt := range []struct {
		name          string
		a             mtls.Authorizer
		dialled, good bool
	}{
		{"any of: another host, or the ID", mtls.AuthorizeAnyOf(mtls.AuthorizeID(d.ID(model)), at("a.test")), true, true},
		{"any of: this host, or another", mtls.AuthorizeAnyOf(at("127.0.0.1"), at("a.test")), true, true},
		{"any of: other hosts", mtls.AuthorizeAnyOf(at("a.test"), at("b.test")), false, false},
		{"any of: another host, or another ID", mtls.AuthorizeAnyOf(mtls.AuthorizeID(d.ID(web)), at("a.test")), true, false},
		{"all of: this host, and the ID", mtls.AuthorizeAllOf(at("127.0.0.1"), mtls.AuthorizeID(d.ID(model))), true, true},
		{"all of: another host, and this", mtls.AuthorizeAllOf(at("a.test"), at("127.0.0.1")), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialled := false
			_, err := dial(t, dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: tt.a, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				dialled = true
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}}), l.Addr().String())
			if dialled != tt.dialled || (err == nil) != tt.good {
				t.Errorf("dialled %v: %v", dialled, err)
			}
		})
	}
}

func TestTheTransportSpeaksNothingButMutualTLS(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	plaintext := httptest.NewServer(http.NotFoundHandler())
	defer plaintext.Close()
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))})
	_, err := (&http.Client{Transport: dd.Transport()}).Get(plaintext.URL)
	if err == nil || !strings.Contains(err.Error(), "https://") {
		t.Errorf("http://: %v", err)
	}
	proxied := dd.Transport()
	proxied.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(plaintext.URL) }
	if _, err = (&http.Client{Transport: proxied}).Get("https://model.test/"); err == nil || !strings.Contains(err.Error(), "no proxy") {
		t.Errorf("through a proxy: %v", err)
	}
	careless := dd.Transport()
	careless.DialTLSContext = nil
	careless.DialContext = nil
	tlsServer := httptest.NewUnstartedServer(http.NotFoundHandler())
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsServer.StartTLS()
	defer tlsServer.Close()
	if _, err = (&http.Client{Transport: careless}).Get(tlsServer.URL); err == nil {
		t.Error("a transport whose dialer was taken out goes on without it")
	}
}

func TestAHandlerThatIsMountedElsewhereIsNotReached(t *testing.T) {
	elsewhere := httptest.NewServer(mtls.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached") })))
	defer elsewhere.Close()
	resp, err := http.Get(elsewhere.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestConnContextsOfTheProgramAreCalledToo(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	type key struct{}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		peer, _ := identity.PeerFromContext(r.Context())
		io.WriteString(w, r.Context().Value(key{}).(string)+" "+peer.ID.Path())
	})
	server := &http.Server{Handler: mux, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		if _, ok := identity.PeerFromContext(ctx); !ok {
			t.Error("the program's ConnContext does not see the peer")
		}
		return context.WithValue(ctx, key{}, "mine")
	}}
	done := make(chan error, 1)
	go func() { done <- l.Serve(server) }()
	client := &http.Client{Transport: dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))}).Transport()}
	if got, err := get(t, client, l.Addr().String()); err != nil || got != "mine "+web {
		t.Errorf("got %q, %v", got, err)
	}
	client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-done; err != http.ErrServerClosed {
		t.Error(err)
	}
}

// In TLS 1.3 a client is done before the server looks at its certificate.
func TestARefusalAfterTheClientsHandshakeReachesHooks(t *testing.T) {
	p := newPair(t, nil)
	p.Deny(chaincheck.Denial{ID: p.ID("/ns/shop/sa/bad"), Reason: "stolen", At: time.Now()})
	var seen events
	d := dialer(t, mtls.ClientConfig{Source: p.Source("/ns/shop/sa/bad"), Authorize: p.client.Authorize, Hooks: []handshake.Hook{seen.hook}})
	c, err := d.DialContext(context.Background(), "tcp", p.address())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 1))
	c.Close()
	seen.says(t, handshake.Rejected)
	if e := seen.last(); e.RefusedBy() != handshake.Peer {
		t.Errorf("the hook was told %v (the read said %v)", e, err)
	}
	// net/http closes for us.
	address := serve(t, mtls.ServerConfig{Source: p.Source(model), Authorize: mtls.AuthorizeID(p.ID(web))})
	client := &http.Client{Transport: d.Transport()}
	if _, err := get(t, client, address); err == nil {
		t.Fatal("served")
	}
	until(t, "the second refusal reaches the hook", func() bool { seen.mu.Lock(); defer seen.mu.Unlock(); return len(seen.failed) == 2 })
}

// The per-connection check is what enforces: here no package restricts what
// crypto/tls offers.
func TestTheStrictProfileRefusesOtherSuitesOnEachConnection(t *testing.T) {
	suites.Register(func() bool { return true })
	defer suites.Register(func() bool { return false })
	for _, tt := range []struct {
		name           string
		server, client mtls.Profile
	}{{"the server", mtls.Strict, mtls.Default}, {"the client", mtls.Default, mtls.Strict}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, c *mtls.ClientConfig) {
				s.Profile, c.Profile = tt.server, tt.client
			})
			_, err := dial(t, dialer(t, p.client), p.address())
			if err == nil {
				t.Fatal("accepted")
			}
			e, _ := errors.AsType[*handshake.Error](err)
			if tt.server == mtls.Strict {
				p.seen.says(t, handshake.CipherSuite)
				e = p.seen.last()
			}
			wantCause(t, e, handshake.CipherSuite)
			profile, ok := errors.AsType[*mtls.ProfileError](error(e))
			if !ok || profile.Profile != mtls.Strict || profile.Value != "TLS_AES_128_GCM_SHA256" {
				t.Errorf("refused as %v", e)
			}
		})
	}
}
