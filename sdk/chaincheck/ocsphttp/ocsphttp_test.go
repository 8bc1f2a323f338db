package ocsphttp

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/egress"
)

var loopback = egress.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}

// serve answers on loopback until the test ends.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); <-done })
	return "http://" + listener.Addr().String() + "/ocsp"
}

func newFetcher(t *testing.T, c Config) *Fetcher {
	t.Helper()
	f, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func answers(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = w.Write(body)
	}
}

// TestA08WhereNoResponderIsAsked: a certificate names the address.
func TestA08WhereNoResponderIsAsked(t *testing.T) {
	var reached atomic.Int32
	inside := serve(t, func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	_, port, _ := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(inside, "http://"), "/ocsp"))
	f := newFetcher(t, Config{})
	for name, u := range map[string]string{
		"loopback": inside, "localhost": "http://localhost:" + port + "/", "loopback in IPv6 spelling": "http://[::ffff:127.0.0.1]:" + port + "/",
		"the metadata service": "http://169.254.169.254/latest/", "a private address": "http://10.0.0.1/", "unspecified": "http://0.0.0.0:" + port + "/",
		"loopback as a number": "http://2130706433:" + port + "/", "another port of a public address": "http://93.184.215.14:22/",
		"https": "https://93.184.215.14/", "a file": "file:///etc/passwd", "user information": "http://u:p@93.184.215.14/", "gopher": "gopher://93.184.215.14/",
		"no host": "http:///x", "a Unix socket": "unix:///run/docker.sock",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := f.Fetch(ctx, chaincheck.OCSPRequest{URL: u, DER: []byte{0x30, 0}, Nonce: true})
		cancel()
		var refused *egress.Refused
		if err == nil || !errors.As(err, &refused) && !strings.Contains(err.Error(), "is not a responder's address") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if reached.Load() != 0 {
		t.Errorf("%d requests reached the inside", reached.Load())
	}
}

func TestAnswersThatAreNotRead(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	const timedOut = "Client.Timeout"
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    string // "" read
	}{
		{"an answer", answers([]byte("answer")), ""},
		{"as large as allowed", answers(make([]byte, maxResponse)), ""},
		{"larger", answers(make([]byte, maxResponse+1)), "more than 65536"},
		{"without end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/ocsp-response")
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, "more than 65536"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "none is followed"},
		{"an error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "HTTP 503"},
		{"a web page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "text/html"},
		{"giant headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 64<<10)) }, "exceeded"},
		{"nothing, for ever", func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice the end
			<-r.Context().Done()
		}, timedOut},
		{"drop by drop", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/ocsp-response")
			_, _ = io.Copy(io.Discard, r.Body)
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-r.Context().Done():
					return
				case <-tick.C:
					_, _ = w.Write([]byte{0})
					w.(http.Flusher).Flush()
				}
			}
		}, timedOut},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Egress: loopback, Timeout: time.Minute}
			if tt.want == timedOut {
				c.Timeout = 300 * time.Millisecond
			}
			f := newFetcher(t, c)
			start := time.Now()
			body, err := f.Fetch(t.Context(), chaincheck.OCSPRequest{URL: serve(t, tt.handler), DER: []byte{0x30, 0}, Nonce: true})
			if tt.want == "" && (err != nil || len(body) == 0) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%d bytes, %v; want %q", len(body), err, tt.want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestHowAQuestionTravels: RFC 6960 A.1, RFC 5019 5.
func TestHowAQuestionTravels(t *testing.T) {
	der := []byte{0x30, 0x82, 0xfb, 0xff, 0xfe, 0xf0}
	type seen struct {
		method, path, kind string
		body               []byte
	}
	got := make(chan seen, 1)
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.URL.EscapedPath(), r.Header.Get("Content-Type"), body}
		answers([]byte("x"))(w, r)
	})
	f := newFetcher(t, Config{Egress: loopback, Timeout: time.Minute})
	for _, tt := range []struct {
		name   string
		r      chaincheck.OCSPRequest
		method string
	}{
		{"with a nonce", chaincheck.OCSPRequest{URL: at, DER: der, Nonce: true}, http.MethodPost},
		{"without, and short", chaincheck.OCSPRequest{URL: at, DER: der}, http.MethodGet},
		{"without, and long", chaincheck.OCSPRequest{URL: at, DER: make([]byte, 200)}, http.MethodPost},
		{"to an address with a query", chaincheck.OCSPRequest{URL: at + "?a=b", DER: der}, http.MethodPost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := f.Fetch(t.Context(), tt.r); err != nil {
				t.Fatal(err)
			}
			s := <-got
			if s.method != tt.method {
				t.Fatalf("%+v", s)
			}
			if s.method == http.MethodPost {
				if string(s.body) != string(tt.r.DER) || s.kind != "application/ocsp-request" {
					t.Errorf("%+v", s)
				}
				return
			}
			last, err := url.PathUnescape(strings.TrimPrefix(s.path, "/ocsp/"))
			if err != nil || strings.Contains(strings.TrimPrefix(s.path, "/ocsp/"), "/") {
				t.Fatalf("%q: %v", s.path, err)
			}
			if back, err := base64.StdEncoding.DecodeString(last); err != nil || string(back) != string(der) {
				t.Errorf("%q reads back as %x, %v", s.path, back, err)
			}
		})
	}
}

func TestAFetcherThatAllowsNothingIsNotMade(t *testing.T) {
	if _, err := New(Config{Egress: egress.Config{AllowHosts: []string{"*"}}}); err == nil {
		t.Error("made")
	}
}
