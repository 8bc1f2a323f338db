package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/policy"
)

func source(rules string) policy.Policy {
	return policy.Policy{Name: "p", Version: "1", Modules: map[string]string{"p.rego": "package legation\n" + rules}}
}

func TestEverythingButTrueIsADenial(t *testing.T) {
	for _, tt := range []struct {
		name, source string
		want         policy.Cause
	}{
		{"true allows", `allow := true`, policy.CauseAllowed},
		{"false denies", `allow := false`, policy.CauseDenied},
		{"undefined denies", `allow if input.operation == "other"`, policy.CauseUndefined},
		{"a string is no true", `allow := "true" if input.operation == "predict"`, policy.CauseNotBoolean},
		{"a number is no true", `allow := 1 if input.operation == "predict"`, policy.CauseNotBoolean},
		{"an object is no true", `allow := {"allow": true} if input.operation == "predict"`, policy.CauseNotBoolean},
		{"a set that holds true is no true", `allow contains true if input.operation == "predict"`, policy.CauseNotBoolean},
		{"null is no true", `allow := null if input.operation == "predict"`, policy.CauseNotBoolean},
		{"what only running it shows is no true", `allow := json.unmarshal("1") if input.operation == "predict"`, policy.CauseNotBoolean},
		{"two answers are an error", "allow := true if input.operation == \"predict\"\nallow := false if input.resource.type == \"llm\"", policy.CauseError},
		{"a function that fails is undefined", `allow if to_number(input.operation) == 1`, policy.CauseUndefined},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := empty()
			err := e.Set(context.Background(), "test", source(tt.source))
			if tt.want == policy.CauseNotBoolean && err != nil && strings.Contains(err.Error(), "never true") {
				return // its type alone shows it
			}
			if err != nil {
				t.Fatal(err)
			}
			in := ask("shop", "web", "predict", "llm", "m")
			if d := e.Decide(context.Background(), &in); d.Cause != tt.want || d.Allowed != (tt.want == policy.CauseAllowed) {
				t.Errorf("allowed %v, cause %s (%s); want %s", d.Allowed, d.Cause, d.Detail, tt.want)
			}
		})
	}
}

func TestNoPolicyAndNoPeerAreDenials(t *testing.T) {
	e := empty()
	in := ask("a", "b", "predict", "llm", "m")
	if d := e.Decide(context.Background(), &in); d.Allowed || d.Cause != policy.CauseNoPolicy {
		t.Errorf("without policies: %+v", d)
	}
	e = engine(t, policy.Config{}, source("allow := true"))
	in.Identity = spiffeid.ID{}
	if d := e.Decide(context.Background(), &in); d.Allowed || d.Cause != policy.CauseNoPeer {
		t.Errorf("without a peer: %+v", d)
	}
}

func TestARefusalIsNeverAnAllowedDecision(t *testing.T) {
	e := engine(t, policy.Config{}, source("allow := true"))
	for err, want := range map[error]policy.Cause{
		errors.New("x"): policy.CauseMalformed,
		fmt.Errorf("y: %w", &policy.Refusal{Cause: policy.CausePath}): policy.CausePath,
		&policy.Refusal{Cause: policy.CauseAllowed}:                   policy.CauseMalformed,
		&policy.Refusal{Cause: "one of somebody else"}:                policy.CauseMalformed,
	} {
		if d := e.Refuse(err); d.Allowed || d.Cause != want {
			t.Errorf("%v: %+v; want %s", err, d, want)
		}
	}
}

func TestABadPolicyKeepsTheOneBefore(t *testing.T) {
	var logged bytes.Buffer
	registry := prometheus.NewRegistry()
	e := policy.NewEngine(policy.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil)), Registerer: registry, Deadline: 200 * time.Millisecond,
		Probes: []policy.Probe{{Name: "shop keeps predict", Input: ask("shop", "web", "predict", "llm", "m"), Allowed: true}}})
	ctx := context.Background()
	good := source(`allow if input.identity.namespace == "shop"`)
	if err := e.Set(ctx, "test", good); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, source, want string }{
		{"that does not parse", "allow := if", "p.rego:2:"},
		{"that does not compile", "allow if missing(1)", "p.rego:2:"},
		{"whose types do not fit", `allow if startswith(1, "a")`, "p.rego:2:"},
		{"that asks for a field that no input has", `allow if input.identity.spife_id == "a"`, "p.rego:2:"},
		{"that reaches the network", `allow if http.send({"url": "http://127.0.0.1", "method": "get"})`, "http.send"},
		{"that never says true", `allow := "yes"`, "never true"},
		{"that fails the test question", `allow := json.unmarshal("1")`, "test question"},
		{"that loops", "n := numbers.range(1, 100000)\nallow if { some a in n; some b in n; some c in n; a + b == c * -1 }", "deadline"},
		{"that fails a probe", `allow if input.identity.namespace == "other"`, "shop keeps predict"},
		{"that is too large", "# " + strings.Repeat("x", policy.MaxModuleBytes), "bytes"},
		{"that nests too deep", "allow := " + strings.Repeat("[", 200), "nested"},
		{"whose query nobody answers", "other := true", "no rule answers"},
	} {
		t.Run("one "+tt.name, func(t *testing.T) {
			logged.Reset()
			bad := source(tt.source)
			bad.Version = "2"
			err := e.Set(ctx, "test", bad)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v; want %q", err, tt.want)
			}
			if !strings.Contains(logged.String(), "refused") {
				t.Errorf("the log does not say it: %s", logged.String())
			}
			in := ask("shop", "web", "predict", "llm", "m")
			if d := e.Decide(ctx, &in); !d.Allowed || d.Policies[0].Version != "1" {
				t.Errorf("the policy before is not in force: %+v", d)
			}
		})
	}
	want := strings.NewReader("# HELP legation_policy_loads_total Policies loaded, refused or found unchanged, by source.\n# TYPE legation_policy_loads_total counter\n" +
		"legation_policy_loads_total{result=\"loaded\",source=\"test\"} 1\nlegation_policy_loads_total{result=\"refused\",source=\"test\"} 12\n")
	if err := testutil.GatherAndCompare(registry, want, "legation_policy_loads_total"); err != nil {
		t.Error(err)
	}
}

func TestAllPoliciesMustAllow(t *testing.T) {
	ctx := context.Background()
	a, b := source(`allow if input.identity.namespace == "shop"`), source(`allow if input.operation == "predict"`)
	a.Name, b.Name = "a", "b"
	e := engine(t, policy.Config{}, a, b)
	for _, tt := range []struct {
		in   policy.Input
		want bool
	}{
		{ask("shop", "web", "predict", "llm", "m"), true},
		{ask("shop", "web", "upload", "llm", "m"), false},
		{ask("other", "web", "predict", "llm", "m"), false},
	} {
		if d := e.Decide(ctx, &tt.in); d.Allowed != tt.want {
			t.Errorf("%s %s: %+v; want %v", tt.in.Identity, tt.in.Operation, d, tt.want)
		}
	}
	bad := source("allow := if")
	bad.Name = "c"
	if err := e.Set(ctx, "test", a, b, bad); err == nil {
		t.Fatal("a bad policy was taken")
	}
	in := ask("shop", "web", "predict", "llm", "m")
	if d := e.Decide(ctx, &in); d.Cause != policy.CauseBroken {
		t.Errorf("a policy that never loaded would have denied something: %+v", d)
	}
	if err := e.Set(ctx, "test", a); err != nil {
		t.Fatal(err)
	}
	if d := e.Decide(ctx, &in); !d.Allowed {
		t.Errorf("policies that were taken away still count: %+v", d)
	}
}

func TestRegoV0IsReadWhereItIsDeclared(t *testing.T) {
	old := policy.Policy{Name: "p", Modules: map[string]string{"p.rego": "package legation\nallow { input.operation == \"predict\" }"}, RegoV0: true}
	e := engine(t, policy.Config{}, old)
	in := ask("a", "b", "predict", "llm", "m")
	if d := e.Decide(context.Background(), &in); !d.Allowed {
		t.Errorf("%+v", d)
	}
	old.RegoV0 = false
	var wrong policy.Errors
	if _, err := policy.Compile(context.Background(), old); !errors.As(err, &wrong) || wrong[0].File != "p.rego" || wrong[0].Line != 2 {
		t.Errorf("v0 was read as v1: %v", err)
	}
}

func TestAPolicyThatLoopsCannotEatACore(t *testing.T) {
	// It loops only for one operation, so that the test question passes.
	e := engine(t, policy.Config{Deadline: 25 * time.Millisecond, SlowShare: 0.05}, source(`
allow if input.operation == "predict"
allow if {
	input.operation == "loop"
	n := numbers.range(1, 3000)
	some a in n
	some b in n
	some c in n
	a + b + c == -1
}`))
	ctx := context.Background()
	loop, quick := ask("a", "b", "loop", "llm", "m"), ask("a", "b", "predict", "llm", "m")
	if d := e.Decide(ctx, &loop); d.Cause != policy.CauseDeadline || d.Duration > 10*time.Second {
		t.Fatalf("%+v", d)
	}
	causes := map[policy.Cause]int{}
	deadline := time.Now().Add(30 * time.Second)
	for throttled := false; !throttled; { // what follows a loop is denied unread, until the share is paid
		if time.Now().After(deadline) {
			t.Fatalf("half a minute of looping was never throttled: %v", causes)
		}
		d := e.Decide(ctx, &loop)
		causes[d.Cause]++
		if d.Allowed {
			t.Fatal("allowed")
		}
		throttled = d.Cause == policy.CauseThrottled && e.Decide(ctx, &quick).Cause == policy.CauseThrottled
	}
	deadline = time.Now().Add(30 * time.Second)
	for d := e.Decide(ctx, &quick); !d.Allowed; d = e.Decide(ctx, &quick) {
		if time.Now().After(deadline) {
			t.Fatal("never decided again")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDecisionLogsHoldNoSecrets(t *testing.T) {
	var logged bytes.Buffer
	var records []policy.Record
	e := engine(t, policy.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil)), LogAllowedEvery: 1,
		OnDecision: func(_ context.Context, r policy.Record) { records = append(records, r) }},
		source(`allow if input.request.headers["x-tenant"][0] == "secret-tenant"`))
	routes, err := policy.NewRoutes(policy.RouteConfig{Headers: []string{"X-Tenant"}, Routes: []policy.Route{
		{Pattern: "GET /v1/keys/{name}", Operation: "read", Type: "key", Mask: []string{"name"}}}})
	if err != nil {
		t.Fatal(err)
	}
	logged.Reset()
	serve(t, e, routes, request("GET", "/v1/keys/secret-name?token=secret-token", "spiffe://a.example/ns/x/sa/y", "X-Tenant: secret-tenant"), 200)
	serve(t, e, routes, request("GET", "/v1/keys/secret-name?token=secret-token", "spiffe://a.example/ns/x/sa/y", "X-Tenant: secret-other"), 403)
	serve(t, e, routes, request("GET", "/v1//secret", "spiffe://a.example/ns/x/sa/y", "Authorization: secret"), 403)
	serve(t, e, routes, request(strings.Repeat("M", 1<<16), "/", "spiffe://a.example/ns/x/sa/y"), 403)
	if s := logged.String(); strings.Contains(s, "secret") || strings.Count(s, "policy decision") != 4 || len(s) > 4096 {
		t.Errorf("the log: %s", s)
	}
	for _, want := range []string{"decision_id=", "cause=path", "cause=undefined", "spiffe_id=spiffe://a.example/ns/x/sa/y", "policies=p@1", "resource_name=***", "duration="} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %s: %s", want, logged.String())
		}
	}
	if len(records) != 4 || strings.Contains(fmt.Sprintf("%+v", records), "secret") {
		t.Errorf("the hook got %+v", records)
	}
}

func TestDecisionLogsAreBounded(t *testing.T) {
	var logged bytes.Buffer
	e := engine(t, policy.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil)), LogPerSecond: 5}, source("allow := false"))
	logged.Reset()
	in := ask("a", "b", "predict", "llm", "m")
	for range 1000 {
		e.Record(t.Context(), policy.Record{Decision: e.Decide(t.Context(), &in)})
	}
	if n := strings.Count(logged.String(), "policy decision"); n < 5 || n > 50 {
		t.Errorf("%d records of 1000 denials at 5 a second", n)
	}
}

func TestHeadersWithSecretsCannotBeSelected(t *testing.T) {
	for _, h := range []string{"Authorization", "cookie", "x-workload-identity", "", "a b", "Spiffe-Id", "spiffe_id", "workload-id-bin", "X-Forwarded-Client-Cert"} {
		if _, err := policy.NewRoutes(policy.RouteConfig{Headers: []string{h}}); err == nil {
			t.Errorf("header %q was taken", h)
		}
	}
}

func TestDataThatOPACannotHoldIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, data, want string }{
		{"a number with too many digits", `{"n": 1e646456992}`, "number"},
		{"an array", `[]`, "JSON object"},
		{"half an object", `{"a": `, "JSON object"},
		{"two objects", `{} {}`, "follows"},
		{"an object nested too deep", strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200), "nested"},
		{"an object where a rule stands", `{"legation": {"allow": true}}`, "conflict"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := source(`allow if input.operation == "x"`)
			p.Data = []byte(tt.data)
			if _, err := policy.Compile(t.Context(), p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}
