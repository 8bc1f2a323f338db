package policy_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/policy"
)

// A service whose callers are verified by sdk/mtls puts the handler around its
// own. Here the peer is put into the context by hand.
func ExampleHandler() {
	engine, err := policy.New(context.Background(), policy.Config{Logger: slog.New(slog.DiscardHandler)}, policy.Policy{
		Name: "models",
		Modules: map[string]string{"models.rego": `package legation

allow if {
	input.operation == "predict"
	input.resource.type == "llm"
	input.identity.namespace == "shop"
}`},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	routes := policy.MustRoutes(
		policy.Route{Pattern: "POST /v1/models/{name}:predict", Operation: "predict", Type: "llm"},
		policy.Route{Pattern: "GET /healthz", Operation: "health"},
	)
	handler := policy.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "42")
	}), engine, routes)

	for _, caller := range []string{"spiffe://prod.example/ns/shop/sa/web", "spiffe://prod.example/ns/other/sa/web"} {
		r := httptest.NewRequest("POST", "/v1/models/gpt:predict", nil)
		peer := identity.Peer{ID: spiffeid.RequireFromString(caller)}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r.WithContext(identity.ContextWithPeer(r.Context(), peer)))
		fmt.Println(caller, w.Code)
	}
	// Output:
	// spiffe://prod.example/ns/shop/sa/web 200
	// spiffe://prod.example/ns/other/sa/web 403
}

// A folder is followed: what changes there is in force milliseconds later.
func ExampleDirectory() {
	ctx, cancel := context.WithCancel(context.Background())
	engine := policy.NewEngine(policy.Config{Logger: slog.New(slog.DiscardHandler)})
	_, loaded := engine.Loaded()
	done := make(chan error, 1)
	go func() { done <- policy.Directory{Path: "examples/feature-platform"}.Run(ctx, engine) }()
	<-loaded

	question := policy.Input{
		Identity:  spiffeid.RequireFromString("spiffe://platform.example/ns/retail/sa/retrieval"),
		Operation: "predict", Resource: policy.Resource{Type: "llm", Name: "ranker"},
		Request: policy.Request{Method: "POST", Path: "/v1/models/ranker:predict"},
	}
	fmt.Println(engine.Decide(ctx, &question).Cause)
	question.Operation = "upload"
	fmt.Println(engine.Decide(ctx, &question).Cause)
	cancel()
	fmt.Println(<-done)
	// Output:
	// allowed
	// denied
	// <nil>
}

// A policy that does not load says where it is wrong, before anything changes.
func ExampleCompile() {
	_, err := policy.Compile(context.Background(), policy.Policy{Name: "models", Modules: map[string]string{
		"models.rego": "package legation\n\nallow if http.send({\"url\": \"http://elsewhere\"}).body\n",
	}})
	fmt.Println(err)
	// Output: models.rego:3:10: rego_type_error: undefined function http.send
}

// Probes are questions whose answers must not change, whoever writes policies.
func ExampleProbe() {
	health := policy.Input{Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/monitoring/sa/probe"),
		Operation: "health", Request: policy.Request{Method: "GET", Path: "/healthz"}}
	engine := policy.NewEngine(policy.Config{
		Logger: slog.New(slog.DiscardHandler),
		Probes: []policy.Probe{{Name: "monitoring may ask for health", Input: health, Allowed: true}},
	})
	err := engine.Set(context.Background(), "example", policy.Policy{Name: "p", Modules: map[string]string{
		"p.rego": "package legation\nallow := false"}})
	fmt.Println(err)
	// Output: probe "monitoring may ask for health": allowed is false (denied), must be true
}

// A signed bundle is verified by keys that the program was given, and goes
// forward only.
func ExampleBundleFile() {
	// The public half of the key that "opa build --signing-key" used.
	key, err := policy.ParseKey("main", []byte(`-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----`))
	if err != nil {
		fmt.Println(err)
		return
	}
	source := policy.BundleFile{
		Path:  "/var/lib/app/bundle.tar.gz", // whoever fetches bundles puts them here
		Keys:  []policy.Key{key},
		State: "/var/lib/app/bundle.highest", // keeps the highest revision
	}
	fmt.Println(key.Algorithm, source.Check())

	_, err = policy.ReadBundle([]byte("anything else"), source.Keys, "")
	fmt.Println(err)
	// then: go source.Run(ctx, engine)

	// Output:
	// EdDSA <nil>
	// the bundle is not gzip: gzip: invalid header
}
