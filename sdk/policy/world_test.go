package policy_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/policy"
)

const platform = "examples/feature-platform"

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func platformPolicy(t testing.TB) policy.Policy {
	t.Helper()
	return policy.Policy{Name: "feature-platform", Version: "1",
		Modules: map[string]string{"roles.rego": string(read(t, platform+"/roles.rego"))}, Data: read(t, platform+"/data.json")}
}

// patient is a deadline that a decision keeps on a machine that is busy with
// something else.
const patient = 5 * time.Second

// empty is an engine without policies.
func empty() *policy.Engine {
	return policy.NewEngine(policy.Config{Logger: quiet(), Deadline: patient})
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func ask(ns, sa, operation, typ, name string) policy.Input {
	return policy.Input{
		Identity:  spiffeid.RequireFromString("spiffe://platform.example/ns/" + ns + "/sa/" + sa),
		Operation: operation, Resource: policy.Resource{Type: typ, Name: name},
		Request: policy.Request{Method: "POST", Path: "/v1/models/" + name + ":" + operation},
	}
}

func engine(t testing.TB, c policy.Config, policies ...policy.Policy) *policy.Engine {
	t.Helper()
	if c.Logger == nil {
		c.Logger = quiet()
	}
	if c.Deadline == 0 {
		c.Deadline = patient
	}
	e, err := policy.New(context.Background(), c, policies...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
