package propagation

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
)

// seen is what a handler saw of one request.
type seen struct {
	header, trailer http.Header
	chain           Chain
}

// verified stands for sdk/mtls: it puts the peer of the connection into the
// context.
func verified(id spiffeid.ID, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: id})))
	})
}

// serve runs a Server and says what its handler sees.
func serve(t *testing.T, c Config, peer spiffeid.ID, start func(*httptest.Server)) (*httptest.Server, <-chan seen) {
	t.Helper()
	saw := make(chan seen, 16)
	h, err := Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		saw <- seen{r.Header.Clone(), r.Trailer.Clone(), FromContext(r.Context())}
	}), c)
	if err != nil {
		t.Fatal(err)
	}
	if !peer.IsZero() {
		h = verified(peer, h)
	}
	s := httptest.NewUnstartedServer(h)
	start(s)
	t.Cleanup(s.Close)
	return s, saw
}

// raw sends bytes and returns the status.
func raw(t *testing.T, s *httptest.Server, request string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// TestA39A46HeaderGames: whatever a client writes, the program sees the peer's
// identity under our names, or nothing.
func TestA39A46HeaderGames(t *testing.T) {
	w := newWorld(t)
	stock, victim := w.ca.ID("stock"), w.ca.ID("admin").String()
	good := wire(w.tokens("shop", "stock", "db")...)
	games := []struct {
		name   string
		lines  string
		status int  // in mode Mesh
		token  bool // the handler sees the chain
	}{
		{"nothing", "", 200, false},
		{"the chain", "x-workload-identity: " + good + "\r\n", 200, true},
		{"the chain, in upper case", "X-WORKLOAD-IDENTITY: " + good + "\r\n", 200, true},
		{"the chain twice", "x-workload-identity: " + good + "\r\nX-Workload-Identity: " + good + "\r\n", 400, false},
		{"the chain joined by a comma", "x-workload-identity: " + good + ", " + good + "\r\n", 400, false},
		{"the chain and an empty one", "x-workload-identity: \r\nx-workload-identity: " + good + "\r\n", 400, false},
		{"the chain folded over two lines", "x-workload-identity: jwt:\r\n " + good[4:] + "\r\n", 400, false},
		{"a forged chain", "x-workload-identity: jwt:e30.e30.e30\r\n", 403, false},
		{"the chain with underscores", "x_workload_identity: " + good + "\r\n", 200, false},
		{"the chain with mixed underscores", "x-workload_identity: " + good + "\r\n", 200, false},
		{"the chain as -bin", "x-workload-identity-bin: " + good + "\r\n", 200, false},
		{"a huge chain", "x-workload-identity: jwt:" + strings.Repeat("a", 100<<10) + "\r\n", 400, false},
		{"spiffe-id", "spiffe-id: " + victim + "\r\n", 200, false},
		{"spiffe-id twice", "spiffe-id: " + victim + "\r\nspiffe-id: " + victim + "\r\n", 200, false},
		{"spiffe-id in upper case", "SPIFFE-ID: " + victim + "\r\n", 200, false},
		{"spiffe-id in three spellings", "Spiffe-id: " + victim + "\r\nsPIFFE-Id: " + victim + "\r\nspiffe_id: " + victim + "\r\n", 200, false},
		{"spiffe_id", "spiffe_id: " + victim + "\r\n", 200, false},
		{"SPIFFE_ID", "SPIFFE_ID: " + victim + "\r\n", 200, false},
		{"spiffe-id-bin", "spiffe-id-bin: AAAA\r\n", 200, false},
		{"spiffe_id_bin", "spiffe_id_bin: AAAA\r\n", 200, false},
		{"spiffe-id and the chain", "spiffe-id: " + victim + "\r\nx-workload-identity: " + good + "\r\n", 200, true},
		{"workload-id", "workload-id: " + victim + "\r\n", 200, false},
		{"workload_id", "workload_id: " + victim + "\r\n", 200, false},
		{"x-forwarded-client-cert", "x-forwarded-client-cert: By=a;URI=" + victim + "\r\n", 200, false},
		{"X_Forwarded-Client_Cert", "X_Forwarded-Client_Cert: URI=" + victim + "\r\n", 200, false},
		{"NUL in a value", "spiffe-id: " + victim + "\x00\r\n", 400, false},
		{"NUL in a name", "spiffe-id\x00: " + victim + "\r\n", 400, false},
		{"a lone CR in a value", "spiffe-id: " + victim + "\rspiffe-id: " + victim + "\r\n", 400, false},
		{"a space before the colon", "spiffe-id : " + victim + "\r\n", 400, false},
		{"a name behind a space", " spiffe-id: " + victim + "\r\n", 400, false},
		{"a pseudo-header in HTTP/1", ":spiffe-id: " + victim + "\r\n", 400, false},
		{"named by Connection", "Connection: spiffe-id, workload-id\r\nspiffe-id: " + victim + "\r\n", 200, false},
		{"baggage that lies", "baggage: workload.origin=" + "spiffe:%2F%2Fexample.org%2Fadmin\r\n", 200, false},
	}
	for _, mode := range []Mode{Mesh, Edge} {
		config := w.config("db")
		config.Mode = mode
		peer := stock
		if mode == Edge {
			peer = spiffeid.ID{}
		}
		server, saw := serve(t, config, peer, (*httptest.Server).Start)
		for _, tc := range games {
			t.Run(fmt.Sprintf("%d/%s", mode, tc.name), func(t *testing.T) {
				want := tc.status
				if mode == Edge && strings.Contains(strings.ToLower(tc.name), "chain") {
					want = 200 // it is removed, not read
				}
				status, body := raw(t, server, "GET / HTTP/1.1\r\nHost: db\r\n"+tc.lines+"\r\n")
				if status != want {
					t.Fatalf("status %d %s, want %d", status, body, want)
				}
				if status != 200 {
					return
				}
				got := <-saw
				mustShow(t, got, peer, mode == Mesh && tc.token, good)
			})
		}
		select {
		case s := <-saw:
			t.Errorf("a refused request reached the handler: %v", s.header)
		default:
		}
	}
}

// mustShow checks all that speaks of identities in what a handler saw.
func mustShow(t *testing.T, got seen, peer spiffeid.ID, token bool, chain string) {
	t.Helper()
	want := map[string][]string{}
	if !peer.IsZero() {
		want[HeaderSPIFFEID], want[HeaderWorkloadID] = []string{peer.String()}, []string{peer.String()}
	}
	if token {
		want[HeaderWorkloadIdentity] = []string{chain}
	}
	for _, h := range []http.Header{got.header, got.trailer} {
		for name, values := range h {
			plain := strings.TrimSuffix(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "-bin")
			for _, ours := range []string{HeaderSPIFFEID, HeaderWorkloadID, HeaderWorkloadIdentity, HeaderForwardedClientCert} {
				if plain == ours && !slices.Equal(values, want[strings.ToLower(name)]) {
					t.Errorf("the handler sees %s: %.100q", name, values)
				}
			}
		}
	}
	for name, values := range want {
		if !slices.Equal(got.header.Values(name), values) {
			t.Errorf("the handler sees %s: %.100q, want %.100q", name, got.header.Values(name), values)
		}
	}
	if got.header.Get("baggage") != "" {
		t.Errorf("the handler sees baggage: %q", got.header.Values("baggage"))
	}
	if got.chain.Caller() != peer {
		t.Errorf("the handler's chain is %v", got.chain)
	}
}

func TestA46TrailersCarryNoIdentity(t *testing.T) {
	w := newWorld(t)
	stock, victim := w.ca.ID("stock"), w.ca.ID("admin").String()
	t.Run("HTTP/1.1", func(t *testing.T) {
		server, saw := serve(t, w.config("db"), stock, (*httptest.Server).Start)
		for _, announced := range []string{"Trailer: spiffe-id, x-checksum\r\n", ""} {
			status, body := raw(t, server, "POST / HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n"+announced+"\r\n2\r\nhi\r\n0\r\nspiffe-id: "+victim+"\r\nx-checksum: 1\r\n\r\n")
			if status != 200 {
				t.Fatal(status, body)
			}
			got := <-saw
			mustShow(t, got, stock, false, "")
			if announced != "" && got.trailer.Get("x-checksum") != "1" {
				t.Errorf("the trailer of somebody else is gone: %v", got.trailer)
			}
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		server, saw := serve(t, w.config("db"), stock, func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() })
		req, _ := http.NewRequest("POST", server.URL, io.NopCloser(bytes.NewReader([]byte("hi"))))
		req.Trailer = http.Header{"Spiffe-Id": {victim}, "X-Checksum": {"1"}, "Workload_id": {victim}}
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto)
		}
		got := <-saw
		mustShow(t, got, stock, false, "")
		if got.trailer.Get("x-checksum") != "1" {
			t.Errorf("the trailer of somebody else is gone: %v", got.trailer)
		}
	})
}

func TestBaggagePassesAndOursSaysTheTruth(t *testing.T) {
	w := newWorld(t)
	stock := w.ca.ID("stock")
	good := wire(w.tokens("shop", "stock", "db")...)
	mesh, sawMesh := serve(t, w.config("db"), stock, (*httptest.Server).Start)
	config := w.config("db")
	config.Mode, config.BaggageFromOutside = Edge, []string{"locale"}
	edge, sawEdge := serve(t, config, spiffeid.ID{}, (*httptest.Server).Start)
	origin, caller := "workload.origin=spiffe:%2F%2Fexample.org%2Fshop", "workload.caller=spiffe:%2F%2Fexample.org%2Fstock"
	for _, tc := range []struct {
		name             string
		lines            []string
		inMesh, fromEdge string
	}{
		{"somebody's", []string{"tenant=a, locale=de;q=1"}, "tenant=a, locale=de;q=1", "locale=de;q=1"},
		{"ours, true", []string{"tenant=a," + origin + "," + caller}, "tenant=a," + origin + "," + caller, ""},
		{"ours, with a property", []string{"tenant=a," + origin + ";x"}, "tenant=a", ""},
		{"ours, a lie", []string{"workload.origin=spiffe:%2F%2Fexample.org%2Fadmin,tenant=a"}, "tenant=a", ""},
		{"ours, the truth and a lie", []string{origin + ",workload.origin=spiffe:%2F%2Fexample.org%2Fadmin"}, origin, ""},
		{"over two lines", []string{"a=1", "workload.caller=x, locale=b"}, "a=1,locale=b", "locale=b"},
		{"malformed", []string{"a=1,=2"}, "", ""},
		{"a quote", []string{`a="1"`}, "", ""},
		{"too many", []string{strings.Repeat("a=1,", 65)}, "", ""},
		{"too long", []string{"a=" + strings.Repeat("x", 9000)}, "", ""},
	} {
		lines := ""
		for _, l := range tc.lines {
			lines += "baggage: " + l + "\r\n"
		}
		if status, body := raw(t, mesh, "GET / HTTP/1.1\r\nHost: db\r\nx-workload-identity: "+good+"\r\n"+lines+"\r\n"); status != 200 {
			t.Fatal(status, body)
		}
		if got := strings.Join((<-sawMesh).header.Values("baggage"), "|"); got != tc.inMesh {
			t.Errorf("%s: in the mesh %q, want %q", tc.name, got, tc.inMesh)
		}
		if status, body := raw(t, edge, "GET / HTTP/1.1\r\nHost: db\r\n"+lines+"\r\n"); status != 200 {
			t.Fatal(status, body)
		}
		if got := strings.Join((<-sawEdge).header.Values("baggage"), "|"); got != tc.fromEdge {
			t.Errorf("%s: at the edge %q, want %q", tc.name, got, tc.fromEdge)
		}
	}
}

// TestThreeHops: edge > orders > stock, each a real HTTP server.
func TestThreeHops(t *testing.T) {
	w := newWorld(t)
	servers := map[string]*httptest.Server{}
	chains := map[string]Chain{}
	client := func(name, to string) *http.Client {
		c := w.config(name)
		c.Audience = ToWorkload(w.ca.ID(to))
		c.Ext = map[string]string{"team": name}
		rt, err := Transport(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(rt.(*transport).CloseIdleConnections)
		return &http.Client{Transport: rt}
	}
	hop := func(name, next string, mode Mode, peer spiffeid.ID) {
		c := w.config(name)
		c.Mode = mode
		var onward *http.Client
		if next != "" {
			onward = client(name, next)
		}
		h, err := Server(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			chains[name] = FromContext(r.Context())
			if onward == nil {
				return
			}
			req, _ := http.NewRequestWithContext(r.Context(), "GET", servers[next].URL, nil)
			req.Header = r.Header.Clone() // as a reverse proxy does
			req.Header.Set("spiffe-id", "spiffe://example.org/admin")
			resp, err := onward.Do(req)
			if err != nil {
				http.Error(rw, err.Error(), 500)
				return
			}
			defer resp.Body.Close()
			rw.WriteHeader(resp.StatusCode)
			io.Copy(rw, resp.Body)
		}), c)
		if err != nil {
			t.Fatal(err)
		}
		if mode == Mesh {
			h = verified(peer, h)
		}
		servers[name] = httptest.NewServer(h)
		t.Cleanup(servers[name].Close)
	}
	hop("db", "", Mesh, w.ca.ID("stock"))
	hop("stock", "db", Mesh, w.ca.ID("orders"))
	hop("orders", "stock", Mesh, w.ca.ID("edge"))
	hop("edge", "orders", Edge, spiffeid.ID{})
	req, _ := http.NewRequest("GET", servers["edge"].URL, nil)
	req.Header.Set("X-Workload-Identity", wire(w.tokens("admin", "edge")...))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	for name, want := range map[string]string{
		"edge":   "nobody",
		"orders": "spiffe://example.org/edge",
		"stock":  "spiffe://example.org/edge > spiffe://example.org/orders",
		"db":     "spiffe://example.org/edge > spiffe://example.org/orders > spiffe://example.org/stock",
	} {
		if got := chains[name].String(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if ext := chains["db"].Hops()[1].Ext; len(ext) != 1 || ext["team"] != "orders" {
		t.Errorf("further claims %v", ext)
	}
}

func TestTheTransportLeavesTheRequestAlone(t *testing.T) {
	w := newWorld(t)
	var got *http.Request
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		got = r
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
	})
	c := w.config("shop")
	c.Audience = ToHosts(map[string]spiffeid.ID{"orders.internal": w.ca.ID("orders")})
	rt, err := Transport(base, c)
	if err != nil {
		t.Fatal(err)
	}
	forged := http.Header{"Spiffe-Id": {"x"}, "Workload_id": {"x"}, "X-Workload-Identity": {"x"}, "X-Forwarded-Client-Cert": {"x"}, "Baggage": {"a=1,workload.origin=x"}, "Accept": {"*/*"}}
	for url, want := range map[string]http.Header{
		"http://orders.internal:8080/": {"Accept": {"*/*"}, "Baggage": {"a=1,workload.origin=spiffe:%2F%2Fexample.org%2Fshop,workload.caller=spiffe:%2F%2Fexample.org%2Fshop"}},
		"http://elsewhere.example/":    {"Accept": {"*/*"}, "Baggage": {"a=1"}},
	} {
		req, _ := http.NewRequest("GET", url, nil)
		req.Header = forged.Clone()
		if _, err := rt.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
		if len(req.Header) != len(forged) || req.Header.Get("Spiffe-Id") != "x" || got == req {
			t.Errorf("%s: the request was changed: %v", url, req.Header)
		}
		sent := got.Header.Clone()
		if token := sent.Get("X-Workload-Identity"); strings.Contains(url, "orders") != strings.HasPrefix(token, "jwt:e") {
			t.Errorf("%s: token %q", url, token)
		}
		sent.Del("X-Workload-Identity")
		if fmt.Sprint(sent) != fmt.Sprint(want) {
			t.Errorf("%s: sent %v, want %v", url, sent, want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestARequestThatCannotBeVouchedForIsNotSent(t *testing.T) {
	w := newWorld(t)
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		t.Error("sent")
		return nil, errors.New("sent")
	})
	chain, err := w.inbound("orders").Accept(from(w.ca.ID("shop"), wire(w.tokens("shop", "orders")...)))
	if err != nil {
		t.Fatal(err)
	}
	down := w.source("orders")
	down.SetDown(true)
	for name, tc := range map[string]struct {
		change func(*Config)
		ctx    context.Context
		later  time.Duration
		want   Cause
	}{
		"nobody signs":               {func(c *Config) { c.Tokens = down }, context.Background(), 0, NotReady},
		"the chain has expired":      {func(*Config) {}, NewContext(context.Background(), chain), 5 * time.Minute, Expired},
		"the chain cannot be deeper": {func(c *Config) { c.MaxDepth = 1 }, NewContext(context.Background(), chain), 0, NoChainSpace},
		"the chain is too long":      {func(c *Config) { c.MaxBytes, c.Ext = 1024, map[string]string{"a": strings.Repeat("x", 500)} }, NewContext(context.Background(), chain), 0, NoChainSpace},
	} {
		begun := w.now
		w.now = w.now.Add(tc.later)
		c := w.config("orders")
		c.Audience = ToWorkload(w.ca.ID("stock"))
		tc.change(&c)
		rt, err := Transport(base, c)
		if err != nil {
			t.Fatal(err)
		}
		closed := &closing{Reader: strings.NewReader("x")}
		req, _ := http.NewRequestWithContext(tc.ctx, "POST", "http://stock/", closed)
		_, err = rt.RoundTrip(req)
		var refused *Error
		if !errors.As(err, &refused) || refused.Cause != tc.want || !closed.done {
			t.Errorf("%s: %v (body closed %v), want %s", name, err, closed.done, tc.want)
		}
		w.now = begun
	}
	c := w.config("orders")
	c.Audience = func(*http.Request) (spiffeid.ID, error) { return spiffeid.ID{}, errors.New("who is that") }
	rt, err := Transport(base, c)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest("GET", "http://stock/", nil)
	if _, err := rt.RoundTrip(req); err == nil || err.Error() != "who is that" {
		t.Error(err)
	}
}

type closing struct {
	io.Reader
	done bool
}

func (c *closing) Close() error { c.done = true; return nil }

func TestConfigurationsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Config){
		"no identity":            func(c *Config) { c.Identity = nil },
		"a depth of 33":          func(c *Config) { c.MaxDepth = 33 },
		"a negative depth":       func(c *Config) { c.MaxDepth = -1 },
		"a header of no bytes":   func(c *Config) { c.MaxBytes = 10 },
		"a header of a megabyte": func(c *Config) { c.MaxBytes = 1 << 20 },
		"an unknown mode":        func(c *Config) { c.Mode = 7 },
		"no audience":            func(c *Config) { c.Audience = nil },
		"no tokens":              func(c *Config) { c.Tokens = nil },
		"no keys":                func(c *Config) { c.Keys = nil },
		"a claim of our own":     func(c *Config) { c.Ext = map[string]string{"legation.prev": "x"} },
		"a claim with a slash":   func(c *Config) { c.Ext = map[string]string{"a/b": "x"} },
		"long claims":            func(c *Config) { c.Ext = map[string]string{"a": strings.Repeat("x", 5000)} },
	} {
		c := w.config("db")
		c.Audience = ToWorkload(w.ca.ID("x"))
		change(&c)
		_, in := Server(http.NotFoundHandler(), c)
		_, out := Transport(nil, c)
		if in == nil && out == nil {
			t.Errorf("%s: accepted", name)
		}
		for _, err := range []error{in, out} {
			if err != nil && !strings.Contains(err.Error(), "propagation.Config") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := Server(http.NotFoundHandler(), Config{Mode: Edge}); err != nil {
		t.Errorf("an edge needs nothing: %v", err)
	}
}
