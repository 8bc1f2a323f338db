package policy_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/legation-io/legation/sdk/policy"
)

// A58: nothing outside the allow-list is called, by whatever name.
func TestA58OnlyListedFunctionsExist(t *testing.T) {
	for _, tt := range []struct{ name, source string }{
		{"the network", `allow if http.send({"method": "get", "url": "http://127.0.0.1"}).status_code == 200`},
		{"a name server", `allow if count(net.lookup_ip_addr("localhost")) > 0`},
		{"the environment", `allow if opa.runtime().env.HOME != ""`},
		{"chance", `allow if rand.intn("a", 2) == 1`},
		{"a random UUID", `allow if uuid.rfc4122("a") != ""`},
		{"Rego out of a string", `allow if rego.parse_module("a.rego", "package a").package`},
		{"a remote schema", `allow if json.match_schema({}, {"$ref": "http://127.0.0.1/"})[0]`},
		{"a token, unverified", `allow if io.jwt.decode(input.request.path)[1].sub == "a"`},
		{"a certificate", `allow if crypto.x509.parse_certificates("")[0]`},
		{"a signature for a cloud", `allow if providers.aws.sign_req({}, {}, 1)`},
		{"a template", `allow if strings.render_template("{{.}}", {}) == ""`},
		{"YAML with aliases", `allow if yaml.unmarshal("a: 1").a == 1`},
		{"a shift without end", `allow if bits.lsh(1, 1000000000) == 0`},
		{"all digits of a number", `allow if floor(1e999999999) == 0`},
		{"a remainder of all digits", `allow if 1e999999999 % 7 == 0`},
		{"every address of a network", `allow if count(net.cidr_expand("::/0")) > 0`},
		{"every path of a graph", `allow if count(graph.reachable_paths({}, [])) > 0`},
		// CVE-2022-36085: a function comes in as the replacement of another.
		{"the network as a mock of count", `allow if count({"method": "get", "url": "http://127.0.0.1"}).status_code == 200 with count as http.send`},
		{"the network as a mock of a rule", "f(x) := x\nallow if f({\"method\": \"get\"}) == 1 with f as http.send"},
		{"the runtime as a mock of time", `allow if time.now_ns() == 1 with time.now_ns as opa.runtime`},
		{"an allowed function as a mock", `allow if count([1]) == 1 with count as sum`},
		{"a value as a mock of a function", `allow if time.now_ns() == 1 with time.now_ns as 1`},
		{"a rule as a mock of a function", "f(x) := 1\nallow if count([1]) == 2 with count as f"},
		{"a mock of a function of its own", "f(x) := 1\ng(x) := 2\nallow if f(1) == 2 with f as g"},
		{"a mock within a comprehension", `allow if [x | x := count([1]) with count as sum][0] == 1`},
		{"a mock within a not", `allow if not count([1]) == 1 with count as sum`},
		{"a mock within every", `allow if every x in [1] { count([x]) == 1 with count as sum }`},
		{"a mock by way of data", "f(x) := 1\nallow if data.legation.f(1) == 2 with data.legation.f as count"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := policy.Compile(t.Context(), source(tt.source))
			var wrong policy.Errors
			if err == nil || !errors.As(err, &wrong) {
				t.Fatalf("it compiled: %v, %v", p, err)
			}
			if wrong[0].File != "p.rego" || wrong[0].Line < 2 {
				t.Errorf("the error does not say where: %v", err)
			}
		})
	}
	for _, v0 := range []bool{false, true} {
		for _, b := range policy.Capabilities(v0).Builtins {
			if ast.BuiltinMap[b.Name].Nondeterministic && b.Name != "time.now_ns" {
				t.Errorf("%s is nondeterministic", b.Name)
			}
			for _, banned := range []string{"http.", "net.lookup", "opa.", "rand.", "io.", "providers.", "crypto.x509", "rego.", "graphql.", "yaml."} {
				if strings.HasPrefix(b.Name, banned) {
					t.Errorf("%s is allowed", b.Name)
				}
			}
		}
		if n := policy.Capabilities(v0).AllowNet; n == nil || len(n) != 0 {
			t.Errorf("hosts may be connected to: %v", n)
		}
	}
}

// A58: "with" over input and data is what tests need, and allowed.
func TestWithOverInputAndDataStaysAllowed(t *testing.T) {
	if _, err := policy.Compile(t.Context(), source("b if input.operation == \"x\"\nallow if b with input.operation as \"x\"\nallow if data.a with data.a as true")); err != nil {
		t.Error(err)
	}
}

// A58: CVE-2025-46569: what is asked is never read as Rego.
func TestA58AQueryIsNeverBuiltFromStrings(t *testing.T) {
	for _, q := range []string{
		"data.legation.allow; true", "data.legation[\"allow\"]", "true", "input.x", "data", "data.", "data..allow", "data.legation.allow or true",
		"data.legation.allow\n", " data.legation.allow", "data.legation.allow == true", "data.1", "data.a-b", "data.legation.allow with input as {}", "x := data.legation.allow", `data["legation"].allow`,
		"data." + strings.Repeat("a", 600),
	} {
		p := source("allow := true")
		p.Query = q
		if _, err := policy.Compile(t.Context(), p); err == nil {
			t.Errorf("query %q was taken", q)
		}
	}
	// The request's own words stay words.
	e := engine(t, policy.Config{}, source(`allow if input.request.path == "/x"`))
	in := ask("a", "b", "predict", "llm", "m")
	in.Request.Path = `/x" or true or "`
	if d := e.Decide(t.Context(), &in); d.Allowed {
		t.Error("a path was read as Rego")
	}
}

// A58: the deadline ends whatever a policy does.
func TestA58NoPolicyOutlivesItsDeadline(t *testing.T) {
	const n = "n := numbers.range(1, 3000)"
	for _, tt := range []struct{ name, helpers, body string }{
		{"nested loops", n, "some a in n; some b in n; some c in n; a + b + c == -1"},
		{"comprehensions in comprehensions", n, "count([1 | some a in n; some b in n; count([1 | some c in n; c > a + b]) == -1]) > 0"},
		{"a product of sets", n, "count({[a, b, c] | some a in n; some b in n; some c in n}) == 1"},
		{"every within every", n, "every a in n { every b in n { every c in n { a + b + c > 0 } } }"},
		{"a large range", "", "count(numbers.range(1, 100000000)) == 1"},
		{"a string that doubles", `f(s) := concat("", [s, s])` + "\ng(s) := f(f(f(f(f(f(s))))))\nh(s) := g(g(g(g(g(s)))))", `h("x") == ""`},
		{"a number that squares", "f(n) := n * n\ng(n) := f(f(f(f(f(f(f(f(n))))))))", "g(g(g(g(123456789)))) == 1"},
		{"an array that doubles", "f(a) := array.concat(a, a)\ng(a) := f(f(f(f(f(f(f(a)))))))", "g(g(g(g([1])))) == []"},
		{"walks within walks", "n := {x: m | some x in numbers.range(1, 300); m := {y: 1 | some y in numbers.range(1, 300)}}",
			"walk(n, [p, v]); walk(n, [q, w]); p != q; v == w; v == 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// The loop hides behind an operation that no test question has.
			e := engine(t, policy.Config{Deadline: 25 * time.Millisecond}, source(tt.helpers+"\nallow if { input.operation == \"loop\"; "+tt.body+" }"))
			in := ask("a", "b", "loop", "llm", "m")
			began := time.Now()
			if d := e.Decide(t.Context(), &in); d.Cause != policy.CauseDeadline || time.Since(began) > 20*time.Second {
				t.Errorf("%s after %s (%s)", d.Cause, time.Since(began), d.Detail)
			}
		})
	}
}

// A40: no name is read as a pattern, and patterns are bounded.
func TestA40PatternsAreLiteralsAndBounded(t *testing.T) {
	for _, tt := range []struct{ name, source, want string }{
		{"a pattern out of the input", `allow if regex.match(input.identity.service_account, "axb")`, "not a literal"},
		{"a pattern put together", `allow if regex.match(concat("", ["^", input.identity.service_account, "$"]), "axb")`, "not a literal"},
		{"a pattern by sprintf", `allow if regex.match(sprintf("^%s$", [input.operation]), "x")`, "not a literal"},
		{"a pattern out of data", `allow if regex.match(data.pattern, "x")`, "not a literal"},
		{"a pattern in a variable", `allow if { p := input.operation; regex.match(p, "x") }`, "not a literal"},
		{"a pattern for replacing", `allow if regex.replace("x", input.operation, "") == ""`, "not a literal"},
		{"a pattern for splitting", `allow if count(regex.split(input.operation, "x")) == 1`, "not a literal"},
		{"a pattern within a call", `allow if count(regex.find_n(input.operation, "x", 1)) == 1`, "not a literal"},
		{"a glob out of the input", `allow if glob.match(input.operation, [], "x")`, "not a literal"},
		{"a glob of many stars", `allow if glob.match("*a*a*a*a*a*a*a*a*a*", [], input.operation)`, "stars"},
		{"a long pattern", `allow if regex.match("` + strings.Repeat("a", 1025) + `", "x")`, "1025 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := policy.Compile(t.Context(), source(tt.source)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
	e := engine(t, policy.Config{}, source(`allow if regex.match("^a\\.b$", input.identity.service_account)`))
	for account, want := range map[string]bool{"a.b": true, "axb": false} {
		in := ask("ns", account, "predict", "llm", "m")
		if d := e.Decide(t.Context(), &in); d.Allowed != want {
			t.Errorf("%s: %v", account, d.Allowed)
		}
	}
}
