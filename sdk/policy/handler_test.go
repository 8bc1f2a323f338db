package policy_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/policy"
)

// request is as net/http would hand it to a handler, without cleaning it.
func request(method, target, id string, headers ...string) *http.Request {
	r := &http.Request{Method: method, Header: http.Header{}, RequestURI: target, Proto: "HTTP/1.1", RemoteAddr: "192.0.2.1:1234"}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		u = &url.URL{Path: target}
	}
	r.URL = u
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Add(k, v)
	}
	if id != "" {
		r = r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: spiffeid.RequireFromString(id)}))
	}
	return r
}

func serve(t testing.TB, e *policy.Engine, routes *policy.Routes, r *http.Request, want int) {
	t.Helper()
	served := ""
	h := policy.Handler(http.HandlerFunc(func(w http.ResponseWriter, got *http.Request) {
		served = got.URL.EscapedPath()
		if _, ok := policy.DecisionFromContext(got.Context()); !ok {
			t.Error("the context has no decision")
		}
	}), e, routes)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != want {
		t.Errorf("%s %s: %d; want %d", r.Method, r.RequestURI, w.Code, want)
	}
	if w.Code == http.StatusOK && served != r.URL.Path {
		t.Errorf("%s: decided on %q, served %q", r.RequestURI, r.URL.Path, served)
	}
	if w.Code == http.StatusForbidden && strings.TrimSpace(w.Body.String()) != "403 Forbidden" {
		t.Errorf("the peer is told more than no: %q", w.Body)
	}
}

// A certificate that nobody verified is no peer: only what sdk/mtls says counts.
func TestATLSCertificateAloneIsNoPeer(t *testing.T) {
	e := engine(t, policy.Config{}, source("allow := true"))
	routes := policy.MustRoutes(policy.Route{Pattern: "GET /", Operation: "get"})
	id := "spiffe://example.org/ns/shop/sa/admin"
	r := request("GET", "/", "")
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{spiffeid.RequireFromString(id).URL()}}}}
	serve(t, e, routes, r, http.StatusForbidden)
	serve(t, e, routes, request("GET", "/", id), http.StatusOK)
}

// A38: whatever is not one plain spelling is refused before a policy is asked.
func TestA38OnlyOneSpellingOfAPathIsDecided(t *testing.T) {
	// Everything is allowed but /admin: what slips past the spelling is served.
	e := engine(t, policy.Config{}, source("allow if not startswith(input.request.path, \"/admin\")"))
	routes := policy.MustRoutes(policy.Route{Pattern: "GET /{rest...}", Operation: "get"}, policy.Route{Pattern: "GET /", Operation: "get"})
	const id = "spiffe://a.example/ns/x/sa/y"
	for _, path := range []string{"/", "/a", "/a/b", "/a/b.c", "/a/b-c_d~e!$&'()*+,=:@", "/v1/models/gpt:predict", "/..a", "/a..", "/...", "/a/"} {
		serve(t, e, routes, request("GET", path, id), 200)
	}
	serve(t, e, routes, request("GET", "/a?x=%2F..%2F//", id), 200) // the query string is no path
	for _, path := range []string{
		"/admin", "/admin/x", "//admin", "/a//admin", "/./admin", "/a/../admin", "/a/..", "/..", "/.", "/a/.", "/a/./b", "///",
		"/%61dmin", "/a%21", "/a%2A", "/%2fadmin", "/%2Fadmin", "/a%2f..%2fadmin", "/a/%2e%2e/admin", "/a/%2E%2E/admin", "/%252e%252e/admin", "/a%00", "/a%0a",
		"/a;/../admin", "/a/..;/admin", "/;/admin", "/admin;x=y", "/a;b", `/\admin`, `/a\..\admin`, "/a%5cadmin", "/a%5Cadmin",
		"/a%20b", "/a b", "/ä", "/%c3%a4", "/%c0%af", "/a%", "/a%zz", "/a|b", "/a\"b", "/a<b", "/a^b", "/a`b", "/a{b}", "/a[b]",
		"admin", "a", "", "*", "http:/admin", "/a\x00", "/a\x7f", "/\x80", "/a\tb", "/a\r\nb", "/a#b",
	} {
		serve(t, e, routes, request("GET", path, id), 403)
	}
	for _, h := range []string{"X-HTTP-Method-Override: DELETE", "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Method-Override: PUT", "X-HTTP-Method: PUT",
		"X_HTTP_METHOD_OVERRIDE: DELETE", "x-original_url: /admin", "X_Rewrite-URL: /admin"} {
		serve(t, e, routes, request("GET", "/a", id, h), 403)
	}
	opaque := request("GET", "/a", id)
	opaque.URL = &url.URL{Opaque: "/admin"}
	serve(t, e, routes, opaque, 403)
	serve(t, e, routes, request("GET", "/a", ""), 403)
	serve(t, e, routes, request("PUT", "/a", id), 403)
	serve(t, e, routes, request("get", "/a", id), 403)
}

func TestARealServerRefusesTheSameSpellings(t *testing.T) {
	e := engine(t, policy.Config{}, source("allow := true"))
	routes := policy.MustRoutes(policy.Route{Pattern: "GET /{rest...}", Operation: "get"})
	inner := policy.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}), e, routes)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: spiffeid.RequireFromString("spiffe://a.example/x")})))
	}))
	defer s.Close()
	for path, want := range map[string]int{"/a": 200, "//a": 403, "/%61": 403, "/a!": 200, "/a%21": 403, "/%2a": 403, "/%28%29": 403, "/%27": 403, "/a/%2e%2e/b": 403, "/a;b": 403, "/a%5cb": 403} {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.Opaque = path // sent as it is
		resp, err := s.Client().Do(&http.Request{Method: "GET", URL: u, Host: u.Host})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d; want %d", path, resp.StatusCode, want)
		}
	}
}

func TestRoutesGiveOperationAndResource(t *testing.T) {
	routes := policy.MustRoutes(
		policy.Route{Pattern: "POST /v1/models/{name}:predict", Operation: "predict", Type: "llm"},
		policy.Route{Pattern: "POST /v1/models/{name}:embed", Operation: "predict", Type: "embedding"},
		policy.Route{Pattern: "GET /v1/models/{name}", Operation: "read", Type: "llm"},
		policy.Route{Pattern: "GET /v1/models/special", Operation: "special", Name: "fixed"},
		policy.Route{Pattern: "GET /v1/{kind}/{name}/versions/{version}", Operation: "version"},
		policy.Route{Pattern: "GET /files/{rest...}", Operation: "file"},
		policy.Route{Pattern: "GET /healthz", Operation: "health"},
	)
	for _, tt := range []struct{ method, path, operation, typ, name, params string }{
		{"POST", "/v1/models/gpt:predict", "predict", "llm", "gpt", ""},
		{"POST", "/v1/models/gpt:embed", "predict", "embedding", "gpt", ""},
		{"POST", "/v1/models/a:predict:predict", "predict", "llm", "a:predict", ""},
		{"POST", "/v1/models/:predict", "", "", "", ""},
		{"POST", "/v1/models/a/b:predict", "", "", "", ""},
		{"GET", "/v1/models/gpt", "read", "llm", "gpt", ""},
		{"GET", "/v1/models/special", "special", "", "fixed", ""},
		{"GET", "/v1/models/x/versions/3", "version", "", "x", "kind=models version=3"},
		{"GET", "/files/a/b/c", "file", "", "", "rest=a/b/c"},
		{"GET", "/files/", "", "", "", ""},
		{"GET", "/files", "", "", "", ""},
		{"GET", "/healthz", "health", "", "", ""},
		{"GET", "/healthz/", "", "", "", ""},
		{"HEAD", "/healthz", "", "", "", ""},
	} {
		route, resource, ok := routes.Match(tt.method, tt.path)
		var params []string
		for _, p := range resource.Params {
			params = append(params, p.Name+"="+p.Value)
		}
		if ok != (tt.operation != "") || ok && (route.Operation != tt.operation || resource.Type != tt.typ || resource.Name != tt.name || strings.Join(params, " ") != tt.params) {
			t.Errorf("%s %s: %v %q %+v", tt.method, tt.path, ok, route.Operation, resource)
		}
	}
}

func TestRoutesThatCannotBeMeantAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		routes     []policy.Route
	}{
		{"no method", "METHOD /path", []policy.Route{{Pattern: "/a", Operation: "x"}}},
		{"no operation", "no operation", []policy.Route{{Pattern: "GET /a"}}},
		{"no slash", "start with /", []policy.Route{{Pattern: "GET a", Operation: "x"}}},
		{"an empty segment", "canonical", []policy.Route{{Pattern: "GET //a", Operation: "x"}}},
		{"an encoded segment", "canonical", []policy.Route{{Pattern: "GET /%61", Operation: "x"}}},
		{"two parameters in a segment", "one parameter", []policy.Route{{Pattern: "GET /{a}{b}", Operation: "x"}}},
		{"a parameter twice", "each once", []policy.Route{{Pattern: "GET /{a}/{a}", Operation: "x"}}},
		{"an open parameter in the middle", "last segment", []policy.Route{{Pattern: "GET /{a...}/b", Operation: "x"}}},
		{"a mask of nothing", "names no parameter", []policy.Route{{Pattern: "GET /{a}", Operation: "x", Mask: []string{"b"}}}},
		{"the same twice", "same paths", []policy.Route{{Pattern: "GET /{a}", Operation: "x"}, {Pattern: "GET /{b}", Operation: "y"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := policy.NewRoutes(policy.RouteConfig{Routes: tt.routes}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}
