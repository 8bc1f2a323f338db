package catalog

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

func policyNamed(name string, rego ...string) string {
	return "apiVersion: legation.io/v1alpha1\nkind: Policy\nmetadata: {name: " + name + ", namespace: shop}\nspec:\n  modules:\n    allow.rego: |\n      package legation\n      " +
		strings.ReplaceAll(strings.Join(rego, "\n"), "\n", "\n      ") + "\n"
}

// A58: what a tenant declares is compiled here and evaluated in the programs
// that it is for. Each of these ended the process that evaluated it, or took
// it gigabytes: one built-in function, or one comparison, has no deadline.
func TestA58NoPolicyIsEvaluatedByTheControlPlane(t *testing.T) {
	doubling := func(first, step, last string, n int) string {
		var b strings.Builder
		b.WriteString("allow if {\n  x0 := " + first + "\n")
		for i := range n {
			fmt.Fprintf(&b, "  x%d := %s\n", i+1, strings.ReplaceAll(step, "X", fmt.Sprintf("x%d", i)))
		}
		return b.String() + "  " + strings.ReplaceAll(last, "X", fmt.Sprintf("x%d", n)) + "\n}"
	}
	for name, rego := range map[string]string{
		"a comparison that overflows the stack": doubling("[1]", "[X, X]", "json.unmarshal(json.marshal(X)) == X", 40),
		"a document that unfolds":               doubling("[1]", "[X, X]", "count(json.marshal(X)) > 1", 40),
		"a string that doubles":                 doubling(`"aaaaaaaaaaaaaaaa"`, `concat("", [X, X])`, "count(X) > 1", 60),
		"an array that doubles":                 doubling("[1, 1, 1, 1]", "array.concat(X, X)", "count(X) > 1", 60),
		"a width":                               `allow if count(sprintf("` + strings.Repeat("%1000000d", 1000) + `", [` + strings.Repeat("1,", 1000) + `])) > 1`,
		"a text that is replaced by longer":     `allow if count(replace("` + strings.Repeat("a", 50000) + `", "a", "` + strings.Repeat("b", 50000) + `")) > 1`,
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, newStore(t), Limits{})
			began := time.Now()
			apply(t, c, policyNamed("bomb", rego))
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestPoliciesAreCompiledOneAtATimeAndHoldUpNobodyElse(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	c.compiling <- struct{}{} // somebody's takes its time
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := c.Apply(ctx, ApplyParams{Documents: doc(policyNamed("a", "allow := true"))}); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	apply(t, c, identity("web"))
	<-c.compiling
	apply(t, c, policyNamed("a", "allow := true"))
}
