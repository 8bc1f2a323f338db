package policy_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/policy"
)

// What is let in reads the same for everybody, and the document holds it.
func FuzzInput(f *testing.F) {
	for _, p := range []string{"/", "/v1/models/gpt:predict", "//admin", "/%2e%2e/x", "/a;b", `/\\x`, "/a/../b", "*", "", "http://a/b", "/a?b=//", "/\x00", "/ä", "/a%2fb"} {
		f.Add("GET", p, "X-Tenant", "a")
	}
	f.Add("POST", "/v1/models/gpt:predict", "x-http-method-override", "DELETE")
	f.Add("POST", "/v1/models/gpt:predict", "X-Tenant", "\xff")
	routes, err := policy.NewRoutes(policy.RouteConfig{Headers: []string{"x-tenant"}, Routes: []policy.Route{
		{Pattern: "GET /{rest...}", Operation: "get"}, {Pattern: "POST /v1/models/{name}:predict", Operation: "predict", Type: "llm"}, {Pattern: "GET /", Operation: "root"}}})
	if err != nil {
		f.Fatal(err)
	}
	e := engine(f, policy.Config{}, source(`allow if input.request.path == input.request.path`))
	id := spiffeid.RequireFromString("spiffe://a.example/ns/x/sa/y")
	f.Fuzz(func(t *testing.T, method, target, header, value string) {
		r := &http.Request{Method: method, Header: http.Header{}}
		r.Header.Add(header, value)
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = &url.URL{Path: target}
		}
		r.URL = u
		in, _, err := routes.Input(r)
		if err != nil {
			return
		}
		in.Identity = id
		path := in.Request.Path
		if path != r.URL.EscapedPath() || path[0] != '/' || strings.Contains(path, "//") || strings.ContainsAny(path, "%;\\ ?#\x00") ||
			strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./") {
			t.Fatalf("%q was let in as %q, and is sent on as %q", target, path, r.URL.EscapedPath())
		}
		again, err := url.Parse(path)
		if err != nil || again.Path != path && !strings.Contains(path[1:], ":") {
			t.Fatalf("%q reads as %v, %v", path, again, err)
		}
		d := e.Decide(t.Context(), &in)
		if !d.Allowed && d.Cause != policy.CauseMalformed && d.Cause != policy.CauseTooLarge {
			t.Fatalf("%+v", d)
		}
		if !d.Allowed {
			return
		}
		got, err := in.Value().(ast.Object).Find(ast.Ref{ast.StringTerm("request"), ast.StringTerm("path")})
		if err != nil || got.Compare(ast.String(path)) != 0 {
			t.Fatalf("the document has %v, %v", got, err)
		}
	})
}

func FuzzBundle(f *testing.F) {
	s := newSigner(f)
	good := s.sign(f, revision(1, "allow := true"))
	f.Add(pack(f, good))
	f.Add(pack(f, good.without(".signatures.json")))
	f.Add(gz(f, []byte("x")))
	keys := []policy.Key{s.public()}
	want := pack(f, good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := policy.ReadBundle(raw, keys, "")
		if err != nil {
			return
		}
		// Only what was signed is ever read, however it was packed.
		if b.Revision != 1 || b.Modules["p.rego"] != good["p.rego"] || len(b.Modules) != 1 {
			t.Fatalf("a bundle that was never signed: %+v (%d of %d bytes)", b, len(raw), len(want))
		}
	})
}

// The list of signatures is the attacker's word until it is verified.
func FuzzSignature(f *testing.F) {
	s := newSigner(f)
	good := s.sign(f, revision(1, "allow := true"))
	f.Add(good[".signatures.json"], good[".manifest"])
	f.Add(`{"signatures":["a.b.c"]}`, `{"revision": "1"}`)
	f.Add(`{"signatures":["eyJhbGciOiJub25lIn0.e30."]}`, `{"revision": "1", "file_rego_versions": {"/*": 0}}`)
	keys := []policy.Key{s.public()}
	f.Fuzz(func(t *testing.T, signatures, manifest string) {
		b, err := policy.ReadBundle(pack(t, good.with(".signatures.json", signatures).with(".manifest", manifest)), keys, "")
		if err == nil && b.Revision != 1 {
			t.Fatalf("%+v", b)
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add("package legation\nallow if input.operation == \"x\"", `{"a": 1}`, "data.legation.allow", false)
	f.Add("package legation\nallow { true }", ``, "", true)
	f.Add("package legation\nallow := [x | x := [y | y := 1]]", `[]`, "data.legation", false)
	f.Fuzz(func(t *testing.T, module, data, query string, v0 bool) {
		e := policy.NewEngine(policy.Config{Logger: quiet(), Deadline: 20e6})
		p := policy.Policy{Name: "p", Modules: map[string]string{"p.rego": module}, Data: []byte(data), Query: query, RegoV0: v0}
		if e.Set(t.Context(), "test", p) == nil {
			in := ask("a", "b", "x", "llm", "m")
			e.Decide(t.Context(), &in)
		}
	})
}
