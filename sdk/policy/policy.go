// Package policy answers "may this caller do this, here": Open Policy Agent,
// embedded, asked once for each request with one input document whose
// identity is the verified peer of the connection.
//
// The input document is the same for HTTP and gRPC, in this program and in
// every other one (see [Input]):
//
//	{
//	  "identity": {"spiffe_id": "spiffe://prod.example/ns/shop/sa/web", "trust_domain": "prod.example",
//	               "path": "/ns/shop/sa/web", "namespace": "shop", "service_account": "web"},
//	  "operation": "predict",
//	  "resource": {"type": "llm", "name": "gpt"},
//	  "request": {"method": "POST", "path": "/v1/models/gpt:predict", "headers": {"x-tenant": ["a"]}}
//	}
//
// A policy is Rego, v1 unless it says v0, and answers a boolean under its
// query, data.legation.allow by default:
//
//	package legation
//
//	allow if {
//		input.identity.namespace == "shop"
//		input.operation == "predict"
//	}
//
// Everything but true is a denial: undefined, an error, a value that is not a
// boolean, an evaluation that takes too long, a request that no route names,
// a path that can be read in two ways, no policy at all. Where several
// policies are in force, all of them must allow.
//
// # What a policy can do
//
// The built-in functions are an allow-list ([Capabilities]): no network, no
// environment, nothing random, no parsing of Rego, no tokens or certificates
// (peers are verified before a policy is asked), nothing whose cost its
// arguments do not bound. time.now_ns is the one function whose answer is not
// determined by the input; it is constant within a decision. Patterns of
// regular expressions and globs are literals of at most 1,024 bytes, so that
// no name is ever read as a pattern. "with" replaces parts of input and data
// and never a function. Fields of the input that do not exist are errors when
// the policy is loaded.
//
// # Where policies come from
//
// [Directory] reads a folder and follows it; [BundleFile] an OPA bundle
// (tar.gz) that must be signed and newer than any before; sdk/policy/declared
// what was declared with "legation apply". A policy that does not load leaves
// the one before in force, is logged with file and line, and counted.
//
// # What this package leaves to others
//
// Verifying the peer is the work of sdk/mtls and sdk/grpccreds; gRPC
// interceptors are in sdk/policy/grpcpolicy, so that users of HTTP do not link
// gRPC.
//
// # How a decision is made
//
// Compiled once, a policy is evaluated on the goroutine of its request, by
// topdown.Query over terms prepared per peer and per route. Three ways were
// measured side by side (BenchmarkAlternatives): this one won over
// rego.PreparedEvalQuery with a parsed input, which opens a transaction,
// allocates metrics and turns its answer into Go values for each decision,
// and over rego's partial evaluation, which is not used for a second reason
// too: with the input unknown it makes one rule of each combination of what
// data allows, so that time and memory grow with the product of the tables,
// rules that use negation or default values come out as support modules that
// are evaluated as before, and time.now_ns would be that of the loading.
//
// # Metrics
//
//   - legation_policy_decisions_total{decision, cause}
//   - legation_policy_decision_seconds
//   - legation_policy_loads_total{source, result}: loaded, refused, unchanged
//   - legation_policy_loaded{policy}: 1 while in force, 0 while one that was
//     refused has no predecessor
//   - legation_policy_throttled_total: evaluations that were given less time,
//     or none, because others had used up what slow evaluations may use
package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// DefaultQuery is asked where a policy names no other.
const DefaultQuery = "data.legation.allow"

// The versions of the Rego language.
const (
	RegoV0 = 0
	RegoV1 = 1
)

// Bounds of one policy. What is larger is refused before it is parsed.
const (
	MaxModules     = 256
	MaxModuleBytes = 256 << 10
	MaxBytes       = 4 << 20 // modules and data together
	maxNesting     = 128     // brackets within brackets
	maxNameBytes   = 512
)

// Policy is the source of one policy: what is compiled, loaded and replaced
// together.
type Policy struct {
	// Name tells policies apart: one with the same name replaces the one
	// before. Logged with each decision.
	Name string
	// Version is logged with each decision; it means nothing else here.
	Version string
	// Modules are Rego sources by file name. Error messages name the file.
	Modules map[string]string
	// RegoV0 says that all Modules are written in Rego v0.
	RegoV0 bool
	// ModuleRegoV0 overrides RegoV0 for single modules.
	ModuleRegoV0 map[string]bool
	// Data becomes the document "data": a JSON object, or empty.
	Data []byte
	// Query is what decides: "data." and names joined by dots. Empty takes
	// DefaultQuery.
	Query string
}

// An Error is one thing that is wrong with a policy.
type Error struct {
	// File is the module's name, as given; empty when no module is at fault.
	File string
	// Line and Column count from 1; 0 when unknown.
	Line, Column int
	// Message says what is refused, and why.
	Message string
}

// Error implements error, as file:line:column: message.
func (e *Error) Error() string {
	switch {
	case e.File == "":
		return e.Message
	case e.Line == 0:
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Errors are all that is wrong with a policy, in order of file and line. It
// is never empty as an error.
type Errors []*Error

// Error implements error: one line per mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single *Error.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, one := range e {
		out[i] = one
	}
	return out
}

func mistake(format string, args ...any) Errors {
	return Errors{{Message: fmt.Sprintf(format, args...)}}
}

// at adds a mistake and its place.
func (e *Errors) at(place *ast.Location, format string, args ...any) {
	one := &Error{Message: fmt.Sprintf(format, args...)}
	if place != nil {
		one.File, one.Line, one.Column = place.File, place.Row, place.Col
	}
	*e = append(*e, one)
}

// fromOPA keeps the places of OPA's own errors.
func fromOPA(err error) Errors {
	var list ast.Errors
	if !errors.As(err, &list) {
		return mistake("%v", err)
	}
	out := make(Errors, 0, len(list))
	for _, e := range list {
		details := ""
		if e.Details != nil {
			if lines := e.Details.Lines(); len(lines) > 0 && len(lines) <= 4 {
				details = " (" + strings.Join(trimAll(lines), " ") + ")"
			}
		}
		out.at(e.Location, "%s: %s%s", e.Code, e.Message, details)
	}
	return out
}

func trimAll(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = strings.TrimSpace(l)
	}
	return out
}

// parseQuery reads a query without ever evaluating it as source: the one form
// is data.<name>.<name>… (A58: a query is never built from strings).
func parseQuery(s string) (ast.Ref, error) {
	if s == "" {
		s = DefaultQuery
	}
	names := strings.Split(s, ".")
	if len(s) > maxNameBytes || len(names) < 2 || names[0] != "data" {
		return nil, fmt.Errorf("query %q: write data.<package>.<rule>, e.g. %s", s, DefaultQuery)
	}
	ref := make(ast.Ref, 0, len(names))
	ref = append(ref, ast.VarTerm("data"))
	for _, n := range names[1:] {
		if !plainName(n) {
			return nil, fmt.Errorf("query %q: %q is no name: use letters, digits and _, not starting with a digit", s, n)
		}
		ref = append(ref, ast.StringTerm(n))
	}
	return ref, nil
}

func plainName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
