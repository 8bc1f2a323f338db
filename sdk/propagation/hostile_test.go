package propagation

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
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
