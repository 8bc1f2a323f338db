// Package policy proves with the real binaries that a declared policy decides
// in a program of the SDK, from "legation apply" to the request.
package policy

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/policy/declared"
	"github.com/legation-io/legation/test/stand"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestMain(m *testing.M) { stand.Main(m) }

// web is this test's own process.
func web() string {
	return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: web, namespace: shop}\nspec:\n  node: node-1\n  selectors: [\"unix:uid:%d\"]\n", os.Geteuid())
}

func declare(namespace, name, rules string) string {
	return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: Policy\nmetadata: {name: %s, namespace: %s}\nspec:\n  modules:\n    %s.rego: |\n      package legation\n      %s\n", name, namespace, name, rules)
}

var question = policy.Input{Identity: spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/client"), Operation: "predict",
	Resource: policy.Resource{Type: "llm", Name: "m"}, Request: policy.Request{Method: "POST", Path: "/v1/models/m:predict"}}

func TestADeclaredPolicyDecidesInAProgram(t *testing.T) {
	s := stand.New(t)
	a := s.Agent("node-1")
	s.Apply(web())
	engine := policy.NewEngine(policy.Config{Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- declared.Source{Addr: "unix://" + a.Socket, Logger: slog.New(slog.DiscardHandler)}.Run(ctx, engine)
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the source ended: %v", err)
		}
	}()
	until := func(what string, want policy.Cause) time.Duration {
		t.Helper()
		began := time.Now()
		for {
			_, changed := engine.Loaded()
			d := engine.Decide(ctx, &question)
			if d.Cause == want {
				return time.Since(began)
			}
			if time.Since(began) > stand.Patience {
				t.Fatalf("%s: %s (%s), want %s", what, d.Cause, d.Detail, want)
			}
			select {
			case <-changed:
			case <-time.After(50 * time.Millisecond): // what time decided, another time may decide otherwise
			}
		}
	}
	until("nothing is declared", policy.CauseNoPolicy)

	s.Apply(declare("shop", "models", `allow if input.operation == "predict"`))
	t.Logf("a policy decided %s after apply returned", until("a policy is declared", policy.CauseAllowed))
	s.Apply(declare("shop", "models", `allow if input.operation == "other"`))
	t.Logf("its change decided %s after apply returned", until("it changed", policy.CauseUndefined))
	s.Apply(declare("shop", "models", `allow if input.identity.namespace == "shop"`))
	until("it changed again", policy.CauseAllowed)
	if loaded, _ := engine.Loaded(); len(loaded) != 1 || loaded[0].Name != "shop/models" {
		t.Errorf("in force: %+v", loaded)
	}

	// A58: what does not compile is refused where it is applied, with its line.
	file := filepath.Join(s.Dir, "bad.yaml")
	for rules, want := range map[string]string{
		`allow if http.send({"method": "get", "url": "http://127.0.0.1"}).body`: "bad.yaml:8",
		`allow if {`: "models.rego:",
		`allow if count([1]) == 2 with count as sum`: "never a function",
		`allow := "yes"`: "answers string, never true",
	} {
		if err := os.WriteFile(file, []byte(declare("shop", "models", rules)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := s.Legation("apply", "-f", file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s was taken: %s %v; want %q", rules, out, err, want)
		}
	}
	if d := engine.Decide(ctx, &question); !d.Allowed {
		t.Errorf("a refused policy changed something: %+v", d)
	}

	// Another namespace's policy binds nobody here, the mesh's binds everybody.
	s.Apply(declare("other", "deny", `allow := false`))
	s.Apply(declare("legation-system", "guard", `allow if input.operation == "none"`))
	until("the mesh's policy denies", policy.CauseUndefined)
	if loaded, _ := engine.Loaded(); len(loaded) != 2 || loaded[0].Name != "legation-system/guard" {
		t.Errorf("in force: %+v", loaded)
	}
	s.Must("delete", "policy", "guard", "-n", "legation-system")
	until("it is deleted", policy.CauseAllowed)

	if out := s.Must("get", "policies", "-A"); !strings.Contains(out, "models") || !strings.Contains(out, "deny") {
		t.Errorf("get policies: %s", out)
	}

	// An agent that is away changes nothing; one that is back knows what was.
	a.Process.Stop()
	if d := engine.Decide(ctx, &question); !d.Allowed {
		t.Errorf("without the agent: %+v", d)
	}
	s.Must("delete", "policy", "models", "-n", "shop")
	a.Start()
	until("the last policy is deleted", policy.CauseNoPolicy)
}
