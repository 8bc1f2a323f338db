package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/policy"
)

// A58: a policy that is expensive to compile is refused before it is.
func TestA58NoPolicyKeepsTheCompilerBusy(t *testing.T) {
	r := strings.Repeat
	lines := func(n int, line func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(line(i) + "\n")
		}
		return b.String()
	}
	nested := "1"
	for i := range 16 {
		nested = fmt.Sprintf("[x%d | x%d := %s]", i, i, nested)
	}
	for _, tt := range []struct{ name, rules, want string }{
		{"comprehensions within each other", "allow if count(" + nested + ") == 1", "within each other"},
		{"comprehensions within a template string", "allow if $\"{" + nested + "}\" == \"\"", "within each other"},
		{"template strings within each other", "allow if " + r("$\"{", 40) + "1" + r("}\"", 40) + " == \"\"", "within each other"},
		{"brackets without end within a template string", "allow if $\"{" + r("[", 20000) + r("]", 20000) + "}\" == \"\"", "deep"},
		{"brackets without end within a raw template string", "allow if $`{" + r("[", 20000) + r("]", 20000) + "}` == \"\"", "deep"},
		{"objects as keys of objects", "allow if count(" + r("{", 40) + "1" + r(": 1}", 40) + ") == 1", "keys of each other"},
		{"objects in sets as keys of objects", "allow if count(" + r("{[", 40) + "1" + r("]: 1}", 40) + ") == 1", "keys of each other"},

		{"a sum without end", "allow if count({1}" + r("|{1}", 60000) + ") == 1", "terms deep"},
		{"else without end", "allow if input.operation == \"x\"" + r(" else := false if input.operation == \"y\"\n", 6000), "else"},
		{"rules without end", lines(5000, func(i int) string { return fmt.Sprintf("x%d if x%d", i+1, i) }) + "x0 := true\nallow if x5000", "rules"},
		{"types that double", "p0 := 1\n" + lines(24, func(i int) string {
			return fmt.Sprintf("p%d := [p%d] if input.operation == \"a\"\nelse := {\"a\": p%d}", i+1, i, i)
		}) + "allow if p24", "written out"},
		{"types that double by way of a function", "p0(x) := x\n" + lines(24, func(i int) string {
			return fmt.Sprintf("p%d(x) := [p%d(x)] if x\nelse := {\"a\": p%d(x)}", i+1, i, i)
		}) + "allow if p24(1)", "written out"},
		{"brackets without end", "allow := " + r("[", 100000), "nested"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			_, err := policy.Compile(t.Context(), source(tt.rules))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestPoliciesOfUsualSizeAreNotTooComplex(t *testing.T) {
	var b strings.Builder
	for i := range 900 {
		fmt.Fprintf(&b, "allow if { input.operation == \"o%d\"; input.resource.type in {\"a\", \"b\"}; helper%d }\n", i, i%20)
	}
	for i := range 20 {
		fmt.Fprintf(&b, "helper%d if { some x in [y | some y in data.list; y != \"z\"]; x == input.identity.namespace }\n", i)
	}
	if _, err := policy.Compile(t.Context(), source(b.String())); err != nil {
		t.Error(err)
	}
}
