package propagation

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
)

// A body that is closed without being read is read by net/http, which then
// adds the trailers that nobody announced.
func TestA46TrailersOfABodyThatNobodyReadsCarryNoIdentity(t *testing.T) {
	w := newWorld(t)
	victim := w.ca.ID("admin").String()
	saw := make(chan http.Header, 1)
	h, err := Server(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		r.Body.Close()
		saw <- r.Trailer.Clone()
	}), w.config("db"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(verified(w.ca.ID("stock"), h))
	defer server.Close()
	for _, announced := range []string{"Trailer: x-checksum\r\n", "Trailer: spiffe-id\r\n", ""} {
		raw(t, server, "POST / HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n"+announced+"\r\n2\r\nhi\r\n0\r\nspiffe-id: "+victim+"\r\nx-checksum: 1\r\n\r\n")
		if got := <-saw; got.Get("spiffe-id") != "" {
			t.Errorf("after %q the handler sees %v", announced, got)
		}
	}
}

// A header that Connection names is removed by proxies (RFC 9110 7.6.1), here
// the handler: a client does not remove its own name so.
func TestA46NoClientHasIdentityRemovedByAProxy(t *testing.T) {
	w := newWorld(t)
	stock := w.ca.ID("stock")
	saw := make(chan http.Header, 1)
	behind := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { saw <- r.Header.Clone() }))
	defer behind.Close()
	at, _ := url.Parse(behind.URL)
	h, err := Server(httputil.NewSingleHostReverseProxy(at), w.config("db"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(verified(stock, h))
	defer server.Close()
	for _, connection := range []string{"Connection: spiffe-id, Workload-ID, close\r\n", "Connection: close\r\nConnection: X-Workload-Identity,SPIFFE-ID\r\n"} {
		token := wire(w.tokens("shop", "stock", "db")...)
		status, body := raw(t, server, "GET / HTTP/1.1\r\nHost: db\r\n"+connection+HeaderWorkloadIdentity+": "+token+"\r\n\r\n")
		if status != 200 {
			t.Fatal(status, body)
		}
		got := <-saw
		mustShow(t, seen{header: got, chain: Chain{&chain{peer: stock}}}, stock, true, token)
	}
}

// A server, or whoever abuses an open redirect of it, chooses where a client
// goes next: our token for it does not go there.
func TestATokenDoesNotFollowARedirectToAnotherHost(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	got := map[string]http.Header{}
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		got[r.URL.String()] = r.Header.Clone()
		mu.Unlock()
		next := map[string]string{
			"https://stock.test/out": "https://evil.test/", "https://stock.test/here": "/there", "https://evil.test/": "https://evil.test/more",
			"https://stock.test/plain": "http://stock.test/", "https://stock.test/port": "https://stock.test:8443/", "https://evil.test/more": "https://stock.test/again",
		}[r.URL.String()]
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: r}
		if next != "" {
			resp.StatusCode, resp.Header = http.StatusTemporaryRedirect, http.Header{"Location": {next}}
		}
		return resp, nil
	})
	c := w.config("orders")
	c.Audience = ToWorkload(w.ca.ID("stock"))
	rt, err := Transport(base, c)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: rt}
	for _, start := range []string{"out", "here", "plain", "port"} {
		resp, err := client.Get("https://stock.test/" + start)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for address, want := range map[string]bool{
		"https://stock.test/out": true, "https://stock.test/here": true, "https://stock.test/there": true,
		"https://stock.test/again": false, "https://evil.test/": false, "https://evil.test/more": false, "http://stock.test/": false, "https://stock.test:8443/": false,
	} {
		header, sent := got[address]
		if has := len(header[canonicalWorkloadIdentity]) == 1; !sent || has != want {
			t.Errorf("%s: asked %v, with a token: %v", address, sent, has)
		}
	}
}

// A signer that panics under one call does not hold up all that come after.
func TestASignerThatPanicsIsAskedAgain(t *testing.T) {
	w := newWorld(t)
	signer := &panicking{source: w.source("orders")}
	out := w.outbound("orders", func(c *Config) { c.Tokens = signer })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is hidden")
			}
		}()
		out.Header(t.Context(), w.ca.ID("stock"))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := out.Header(ctx, w.ca.ID("stock")); err != nil {
		t.Error(err)
	}
}

type panicking struct {
	source
	calls int
}

func (p *panicking) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (Token, error) {
	if p.calls++; p.calls == 1 {
		panic("a bug")
	}
	return p.source.Token(ctx, audience, ext)
}

// Once we are somebody else, tokens of who we were are not sent.
func TestTokensOfAnIdentityThatWeHadAreNotSent(t *testing.T) {
	w := newWorld(t)
	who := identity.NewMemory(&identity.Snapshot{ID: w.ca.ID("orders")})
	workload := w.source("orders")
	out := w.outbound("orders", func(c *Config) { c.Identity, c.Tokens = who, workload })
	header(t, out, t.Context(), w.ca.ID("stock"))
	who.Set(&identity.Snapshot{ID: w.ca.ID("billing")})
	workload.ID = w.ca.ID("billing")
	stock := w.inbound("stock")
	if _, err := stock.Accept(from(w.ca.ID("billing"), header(t, out, t.Context(), w.ca.ID("stock")))); err != nil {
		t.Error(err)
	}
}
