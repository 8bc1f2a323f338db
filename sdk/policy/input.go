package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Input is the question: who asks to do what, on what. It is built by Routes
// for HTTP and by sdk/policy/grpcpolicy for gRPC; build one by hand for
// tests, or to ask about something that is neither.
type Input struct {
	// Identity is the verified peer. In the document: spiffe_id, trust_domain,
	// path, and, where the path is /ns/<namespace>/sa/<account> as Istio and
	// Legation shape it, namespace and service_account. A zero Identity is
	// denied without asking.
	Identity spiffeid.ID
	// Operation is what is to be done, e.g. predict or health.
	Operation string
	// Resource is what it is to be done to.
	Resource Resource
	// Request is how it was asked for.
	Request Request
}

// Resource is input.resource.
type Resource struct {
	// Type, e.g. llm or embedding; from the route.
	Type string
	// Name is the path parameter {name} of the route, or "".
	Name string
	// Params are the other path parameters, by name; left out of the
	// document when empty.
	Params []Param
}

// Param is one path parameter.
type Param struct{ Name, Value string }

// Request is input.request.
type Request struct {
	// Method of HTTP; POST for gRPC.
	Method string
	// Path without the query string, exactly as it is handed on; for gRPC the
	// full method, /package.Service/Method.
	Path string
	// Headers that the routes' allow-list names and the request has, names in
	// lower case; left out of the document when empty.
	Headers []Header
}

// Header is one header with all its values, in order.
type Header struct {
	Name   string
	Values []string
}

// Bounds of one input document. A request beyond them is denied.
const (
	MaxPathBytes   = 8 << 10
	MaxHeaderBytes = 8 << 10 // names and values of the selected headers together
	maxHeaderCount = 32      // values
)

// Shape splits a SPIFFE ID of Istio's form, …/ns/<namespace>/sa/<account>.
func Shape(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return "", "", false
	}
	namespace, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	serviceAccount, ok = strings.CutPrefix(rest, "sa/")
	if !ok || strings.Contains(serviceAccount, "/") {
		return "", "", false
	}
	return namespace, serviceAccount, true
}

// Keys of the document, made once: terms are immutable.
var (
	keyIdentity       = ast.StringTerm("identity")
	keySPIFFEID       = ast.StringTerm("spiffe_id")
	keyTrustDomain    = ast.StringTerm("trust_domain")
	keyPath           = ast.StringTerm("path")
	keyNamespace      = ast.StringTerm("namespace")
	keyServiceAccount = ast.StringTerm("service_account")
	keyOperation      = ast.StringTerm("operation")
	keyResource       = ast.StringTerm("resource")
	keyType           = ast.StringTerm("type")
	keyName           = ast.StringTerm("name")
	keyParams         = ast.StringTerm("params")
	keyRequest        = ast.StringTerm("request")
	keyMethod         = ast.StringTerm("method")
	keyHeaders        = ast.StringTerm("headers")
	emptyTerm         = ast.StringTerm("")
)

// words keeps the terms of what comes again and again: operations, types,
// methods, names of headers. Names of resources are not kept: they are the
// peers' words, and without end.
var words learnt[string]

func word(s string) *ast.Term { return words.term(s, text) }

func text(s string) *ast.Term {
	if s == "" {
		return emptyTerm
	}
	return ast.StringTerm(s)
}

func identityTerm(id spiffeid.ID) *ast.Term {
	fields := make([][2]*ast.Term, 0, 5)
	fields = append(fields, ast.Item(keySPIFFEID, text(id.String())),
		ast.Item(keyTrustDomain, text(id.TrustDomain().Name())), ast.Item(keyPath, text(id.Path())))
	if ns, account, ok := Shape(id); ok {
		fields = append(fields, ast.Item(keyNamespace, text(ns)), ast.Item(keyServiceAccount, text(account)))
	}
	return ast.ObjectTerm(fields...)
}

// check refuses what a policy must not be asked about.
func (in *Input) check() error {
	if in.Identity.IsZero() {
		return &Refusal{Cause: CauseNoPeer, Detail: "the request has no verified peer"}
	}
	if len(in.Request.Path) > MaxPathBytes {
		return &Refusal{Cause: CauseTooLarge, Detail: fmt.Sprintf("a path of %d bytes; at most %d", len(in.Request.Path), MaxPathBytes)}
	}
	size, count := 0, 0
	for _, h := range in.Request.Headers {
		size += len(h.Name)
		count += len(h.Values)
		for _, v := range h.Values {
			size += len(v)
			if !utf8.ValidString(v) {
				return &Refusal{Cause: CauseMalformed, Detail: "header " + h.Name + " is not UTF-8"}
			}
		}
	}
	if size > MaxHeaderBytes || count > maxHeaderCount {
		return &Refusal{Cause: CauseTooLarge, Detail: fmt.Sprintf("%d header values of %d bytes; at most %d of %d", count, size, maxHeaderCount, MaxHeaderBytes)}
	}
	for _, s := range []string{in.Operation, in.Resource.Type, in.Resource.Name, in.Request.Method, in.Request.Path} {
		if !utf8.ValidString(s) {
			return &Refusal{Cause: CauseMalformed, Detail: "the input is not UTF-8"}
		}
	}
	return nil
}

// term is the input document, built without JSON and without reflection;
// request is left out where no policy asks for it.
func (in *Input) term(identity *ast.Term, request bool) *ast.Term {
	var resource *ast.Term
	if len(in.Resource.Params) == 0 {
		resource = ast.ObjectTerm(ast.Item(keyType, word(in.Resource.Type)), ast.Item(keyName, text(in.Resource.Name)))
	} else {
		params := make([][2]*ast.Term, len(in.Resource.Params))
		for i, p := range in.Resource.Params {
			params[i] = ast.Item(ast.StringTerm(p.Name), text(p.Value))
		}
		resource = ast.ObjectTerm(ast.Item(keyType, word(in.Resource.Type)), ast.Item(keyName, text(in.Resource.Name)),
			ast.Item(keyParams, ast.ObjectTerm(params...)))
	}
	if !request {
		return ast.ObjectTerm(ast.Item(keyIdentity, identity), ast.Item(keyOperation, word(in.Operation)), ast.Item(keyResource, resource))
	}
	return ast.ObjectTerm(ast.Item(keyIdentity, identity), ast.Item(keyOperation, word(in.Operation)),
		ast.Item(keyResource, resource), ast.Item(keyRequest, in.Request.term()))
}

func (r *Request) term() *ast.Term {
	if len(r.Headers) == 0 {
		return ast.ObjectTerm(ast.Item(keyMethod, word(r.Method)), ast.Item(keyPath, text(r.Path)))
	}
	headers := ast.NewObjectWithCapacity(len(r.Headers))
	for _, h := range r.Headers {
		values := make([]*ast.Term, len(h.Values))
		for i, v := range h.Values {
			values[i] = text(v)
		}
		headers.Insert(word(h.Name), ast.ArrayTerm(values...))
	}
	return ast.ObjectTerm(ast.Item(keyMethod, word(r.Method)), ast.Item(keyPath, text(r.Path)),
		ast.Item(keyHeaders, ast.NewTerm(headers)))
}

// Value is the input document as OPA's value, e.g. for opa's own test runner.
func (in *Input) Value() ast.Value { return in.term(identityTerm(in.Identity), true).Value }

// HeaderNames checks an allow-list of headers: lower case, sorted, and none
// that carries a secret, for what a policy sees its author can learn, or says
// who calls, for that is input.identity alone.
func HeaderNames(names []string) ([]string, error) {
	out := make([]string, 0, len(names))
	for _, n := range names {
		lower := strings.ToLower(n)
		switch {
		case lower == "" || strings.ContainsFunc(lower, func(r rune) bool {
			return r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
		}):
			return nil, fmt.Errorf("%q is not a header's name", n)
		case secretHeader(lower):
			return nil, fmt.Errorf("header %s carries a secret or an identity: a policy must not see it; decide by identity", lower)
		case !slices.Contains(out, lower):
			out = append(out, lower)
		}
	}
	slices.Sort(out)
	return out, nil
}

func secretHeader(lower string) bool {
	switch strings.TrimSuffix(strings.ReplaceAll(lower, "_", "-"), "-bin") {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "x-workload-identity", "x-api-key", "x-auth-token",
		"workload-id", "spiffe-id", "x-forwarded-client-cert": // the last three are who somebody says the caller is
		return true
	}
	return false
}
