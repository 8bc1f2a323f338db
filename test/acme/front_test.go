package acme

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/legation-io/legation/test/acme/pebble"
)

// front stands before a Pebble, so that the client speaks to it, and
// misbehaves as a test says.
type front struct {
	Directory string
	TLS       *x509.CertPool
	// certificate of the front itself.
	certificate *x509.Certificate

	mu       sync.Mutex
	requests []string // "METHOD /path"
	ended    chan struct{}
	// before may answer a request itself, and then returns true.
	before func(http.ResponseWriter, *http.Request) bool
	// after may change an answer of Pebble's.
	after func(*http.Response) error
}

func newFront(t testing.TB, p *pebble.Pebble) *front {
	t.Helper()
	f := &front{ended: make(chan struct{})}
	target, err := url.Parse(p.Directory)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", target.Host
			r.Out.Host = r.In.Host // Pebble makes its URLs of it
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.TLS}, MaxIdleConnsPerHost: 10},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, 0),
		ModifyResponse: func(r *http.Response) error {
			f.mu.Lock()
			after := f.after
			f.mu.Unlock()
			if after != nil {
				return after(r)
			}
			return nil
		},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.Path)
		before := f.before
		f.mu.Unlock()
		if before == nil || !before(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	t.Cleanup(func() { close(f.ended); server.CloseClientConnections(); server.Close() })
	f.Directory = server.URL + "/dir"
	f.TLS = x509.NewCertPool()
	f.TLS.AddCert(server.Certificate())
	f.certificate = server.Certificate()
	return f
}

func (f *front) misbehave(before func(http.ResponseWriter, *http.Request) bool, after func(*http.Response) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

// hang until the client goes, or the test ends. The body is read first, or
// net/http would not see the client go.
func (f *front) hang(r *http.Request) bool {
	io.Copy(io.Discard, r.Body)
	select {
	case <-r.Context().Done():
	case <-f.ended:
	}
	return true
}

// count says how many requests there were to a path.
func (f *front) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.requests {
		if strings.Contains(r, path) {
			n++
		}
	}
	return n
}

// replaceBody of an answer.
func replaceBody(r *http.Response, body []byte) {
	r.Body.Close()
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", "")
	r.Header.Del("Content-Length")
}
