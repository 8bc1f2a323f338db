package policy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/policy"
)

func TestPlatformPolicyPassesItsOwnTests(t *testing.T) {
	modules := map[string]*ast.Module{}
	for _, file := range []string{"roles.rego", "roles_test.rego"} {
		m, err := ast.ParseModule(file, string(read(t, platform+"/"+file)))
		if err != nil {
			t.Fatal(err)
		}
		modules[file] = m
	}
	var data map[string]any
	if err := json.Unmarshal(read(t, platform+"/data.json"), &data); err != nil {
		t.Fatal(err)
	}
	results, err := tester.NewRunner().SetModules(modules).SetStore(inmem.NewFromObject(data)).RunTests(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for r := range results {
		n++
		if !r.Pass() {
			t.Errorf("%s", r)
		}
	}
	if n < 9 {
		t.Errorf("%d tests ran", n)
	}
}

// mirror is the same policy written in Go, on its own.
type mirror struct {
	Platform struct {
		TrustDomain string                         `json:"trust_domain"`
		Namespaces  map[string][]string            `json:"namespaces"`
		Accounts    map[string]map[string][]string `json:"accounts"`
		Grants      map[string]map[string][]string `json:"grants"`
		Locked      map[string]map[string]bool     `json:"locked"`
	} `json:"platform"`
}

func (m *mirror) allow(in policy.Input) bool {
	p := &m.Platform
	if in.Identity.TrustDomain().Name() != p.TrustDomain {
		return false
	}
	if in.Operation == "health" {
		return true
	}
	ns, account, ok := policy.Shape(in.Identity)
	if !ok || p.Locked[in.Resource.Type][in.Resource.Name] {
		return false
	}
	roles, ok := p.Accounts[ns][account]
	if !ok {
		roles = p.Namespaces[ns]
	}
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(p.Grants[r][in.Resource.Type], in.Operation) })
}

// A41 in spirit: two evaluators of one policy, random tables and questions;
// any disagreement is a bug in one of them.
func TestPlatformPolicyAgreesWithTheSameInGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	some := func(n int, from ...string) []string {
		out := []string{}
		for range rng.IntN(n) {
			out = append(out, pick(from...))
		}
		return out
	}
	domains := []string{"platform.example", "other.example"}
	namespaces := []string{"retail", "ml", "serving", "monitoring", "a.b", "axb", "x"}
	accounts := []string{"retrieval", "ingestion", "trainer", "model-admin", "gateway", "a.b", "axb"}
	roles := []string{"predictor", "reader", "writer", "trainer", "observer", "admin"}
	operations := []string{"predict", "read", "list", "write", "upload", "delete", "metrics", "health", ""}
	types := []string{"llm", "embedding", "feature", ""}
	names := []string{"retired", "ranker", ""}
	tables := 60
	if testing.Short() {
		tables = 10
	}
	allowed, asked := 0, 0
	for n := range tables {
		raw := read(t, platform+"/data.json")
		if n > 0 { // the first is the real one
			var m mirror
			m.Platform.TrustDomain = pick(domains...)
			m.Platform.Namespaces = map[string][]string{}
			m.Platform.Accounts, m.Platform.Grants, m.Platform.Locked = map[string]map[string][]string{}, map[string]map[string][]string{}, map[string]map[string]bool{}
			for range rng.IntN(6) {
				m.Platform.Namespaces[pick(namespaces...)] = some(3, roles...)
			}
			for range rng.IntN(6) {
				ns := pick(namespaces...)
				if m.Platform.Accounts[ns] == nil {
					m.Platform.Accounts[ns] = map[string][]string{}
				}
				m.Platform.Accounts[ns][pick(accounts...)] = some(4, roles...)
			}
			for _, r := range roles {
				m.Platform.Grants[r] = map[string][]string{pick(types...): some(5, operations...), pick(types...): some(5, operations...)}
			}
			m.Platform.Locked[pick(types...)] = map[string]bool{pick(names...): rng.IntN(4) > 0}
			var err error
			if raw, err = json.Marshal(m); err != nil {
				t.Fatal(err)
			}
		}
		var m mirror
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		p := platformPolicy(t)
		p.Data = raw
		e := engine(t, policy.Config{}, p)
		for range 500 {
			id := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", pick(domains[0], domains[0], domains[1]), pick(namespaces...), pick(accounts...))
			if rng.IntN(20) == 0 {
				id = fmt.Sprintf("spiffe://%s/%s", pick(domains...), pick("vm/1", "ns/retail", "ns/retail/sa", "ns/retail/sa/retrieval/x", "NS/retail/sa/retrieval"))
			}
			in := policy.Input{Identity: spiffeid.RequireFromString(id), Operation: pick(operations...),
				Resource: policy.Resource{Type: pick(types...), Name: pick(names...)}, Request: policy.Request{Method: "POST", Path: "/x"}}
			d := e.Decide(context.Background(), &in)
			asked++
			if d.Allowed {
				allowed++
			}
			if want := m.allow(in); d.Allowed != want {
				t.Fatalf("%s %q on %+v: OPA says %v (%s %s), Go says %v; tables %s", id, in.Operation, in.Resource, d.Allowed, d.Cause, d.Detail, want, raw)
			}
		}
	}
	if allowed < asked/50 || allowed > asked*9/10 {
		t.Errorf("%d of %d allowed: the questions do not tell the two apart", allowed, asked)
	}
}
