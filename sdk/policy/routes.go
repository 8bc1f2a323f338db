package policy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// A Route says what a method and a path mean to a policy.
type Route struct {
	// Pattern is "METHOD /path", e.g. "POST /v1/models/{name}:predict".
	// A segment is literal, or one parameter in braces with a literal before
	// or after it; a parameter matches at least one byte and no slash. The
	// last segment may be "{rest...}", which matches one or more whole
	// segments. METHOD is one method; GET does not imply HEAD. Among patterns
	// that match, the one with the longer literals, segment by segment from
	// the left, wins.
	Pattern string
	// Operation becomes input.operation; required.
	Operation string
	// Type becomes input.resource.type.
	Type string
	// Name becomes input.resource.name where Pattern has no {name}.
	Name string
	// Mask lists parameters whose values are not logged.
	Mask []string
}

// RouteConfig are the routes of one service.
type RouteConfig struct {
	// Routes of the service; required. What none of them names is denied.
	Routes []Route
	// Headers lists the request headers that become input.request.headers;
	// none by default. Those that carry secrets are refused.
	Headers []string
}

// Routes turn requests into inputs. They are immutable.
type Routes struct {
	byMethod map[string][]*route // the more specific first
	headers  []string
	keys     []string // headers as net/http spells them
}

type route struct {
	Route
	segments []segment
	rest     string // parameter of the last, open segment
}

type segment struct{ before, param, after string }

// NewRoutes checks the routes of a service. Errors name the pattern.
func NewRoutes(c RouteConfig) (*Routes, error) {
	r := &Routes{byMethod: map[string][]*route{}}
	var err error
	if r.headers, err = HeaderNames(c.Headers); err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, h := range r.headers {
		r.keys = append(r.keys, http.CanonicalHeaderKey(h))
	}
	seen := map[string]bool{}
	for _, one := range c.Routes {
		method, parsed, err := parseRoute(one)
		if err != nil {
			return nil, fmt.Errorf("route %q: %w", one.Pattern, err)
		}
		shape := method + " " + parsed.shape()
		if seen[shape] {
			return nil, fmt.Errorf("route %q: another route matches the same paths", one.Pattern)
		}
		seen[shape] = true
		r.byMethod[method] = append(r.byMethod[method], parsed)
	}
	for _, list := range r.byMethod {
		slices.SortStableFunc(list, compareRoutes)
	}
	return r, nil
}

// MustRoutes is NewRoutes for routes that are written in the program; it
// panics where that would return an error.
func MustRoutes(routes ...Route) *Routes {
	r, err := NewRoutes(RouteConfig{Routes: routes})
	if err != nil {
		panic("policy: " + err.Error())
	}
	return r
}

func parseRoute(r Route) (string, *route, error) {
	method, path, ok := strings.Cut(r.Pattern, " ")
	switch {
	case !ok || method == "" || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "":
		return "", nil, fmt.Errorf(`write "METHOD /path", e.g. "GET /healthz"`)
	case r.Operation == "":
		return "", nil, fmt.Errorf("it names no operation")
	case !strings.HasPrefix(path, "/"):
		return "", nil, fmt.Errorf("the path does not start with /")
	}
	out := &route{Route: r}
	parts := strings.Split(path[1:], "/")
	var params []string
	for i, part := range parts {
		before, rest, ok := strings.Cut(part, "{")
		if !ok {
			if part != "" || i < len(parts)-1 {
				if err := CheckPath("/" + part); err != nil || part == "" {
					return "", nil, fmt.Errorf("segment %q is not canonical", part)
				}
			}
			out.segments = append(out.segments, segment{before: part})
			continue
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok || strings.ContainsAny(after, "{}") {
			return "", nil, fmt.Errorf("segment %q: one parameter, as {name}", part)
		}
		open := strings.HasSuffix(name, "...")
		name = strings.TrimSuffix(name, "...")
		if !plainName(name) || slices.Contains(params, name) {
			return "", nil, fmt.Errorf("parameter %q: use letters, digits and _, each once", name)
		}
		if CheckPath("/x"+before) != nil || CheckPath("/x"+after) != nil {
			return "", nil, fmt.Errorf("segment %q is not canonical", part)
		}
		params = append(params, name)
		if !open {
			out.segments = append(out.segments, segment{before, name, after})
			continue
		}
		if i != len(parts)-1 || before != "" || after != "" {
			return "", nil, fmt.Errorf("{%s...} must be the whole last segment", name)
		}
		out.rest = name
	}
	for _, m := range r.Mask {
		if !slices.Contains(params, m) {
			return "", nil, fmt.Errorf("mask %q names no parameter of it", m)
		}
	}
	return method, out, nil
}

func (r *route) shape() string {
	var b strings.Builder
	for _, s := range r.segments {
		b.WriteByte('/')
		b.WriteString(s.before)
		if s.param != "" {
			b.WriteString("{}" + s.after)
		}
	}
	if r.rest != "" {
		b.WriteString("/{...}")
	}
	return b.String()
}

// compareRoutes puts the more specific first: literal before parameter, longer
// literal before shorter, closed before open.
func compareRoutes(a, b *route) int {
	for i := range min(len(a.segments), len(b.segments)) {
		x, y := a.segments[i], b.segments[i]
		if (x.param == "") != (y.param == "") {
			if x.param == "" {
				return -1
			}
			return 1
		}
		if d := len(y.before) + len(y.after) - len(x.before) - len(x.after); d != 0 {
			return d
		}
	}
	if (a.rest == "") != (b.rest == "") {
		if a.rest == "" {
			return -1
		}
		return 1
	}
	return len(b.segments) - len(a.segments)
}

// match fills in the resource.
func (r *route) match(path string, into *Resource) bool {
	rest := path // starts with "/", or is empty
	for _, s := range r.segments {
		if rest == "" {
			return false
		}
		part := rest[1:]
		if i := strings.IndexByte(part, '/'); i >= 0 {
			part, rest = part[:i], part[i:]
		} else {
			rest = ""
		}
		if s.param == "" {
			if part != s.before {
				return false
			}
			continue
		}
		if len(part) <= len(s.before)+len(s.after) || !strings.HasPrefix(part, s.before) || !strings.HasSuffix(part, s.after) {
			return false
		}
		into.set(s.param, part[len(s.before):len(part)-len(s.after)])
	}
	if r.rest != "" {
		if len(rest) < 2 {
			return false
		}
		into.set(r.rest, rest[1:])
		return true
	}
	return rest == ""
}

func (r *Resource) set(param, value string) {
	if param == "name" {
		r.Name = value
		return
	}
	r.Params = append(r.Params, Param{param, value})
}

// Match is what the routes say of a method and a canonical path; false when
// no route names them.
func (r *Routes) Match(method, path string) (Route, Resource, bool) {
	for _, one := range r.byMethod[method] {
		resource := Resource{Type: one.Type, Name: one.Name}
		if one.match(path, &resource) {
			return one.Route, resource, true
		}
	}
	return Route{}, Resource{}, false
}

// rewriting are headers by which a client asks the program behind for another
// method or path than the one that is decided on.
var rewriting = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url"}

// rewrites names one of them that a request has; "" for none. Servers that put
// headers into environment variables (CGI, WSGI) cannot tell dashes from
// underscores.
func rewrites(headers http.Header) string {
	for _, h := range rewriting {
		if _, ok := headers[h]; ok {
			return h
		}
	}
	for name := range headers {
		if strings.Contains(name, "_") {
			if h := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-")); slices.Contains(rewriting, h) {
				return h
			}
		}
	}
	return ""
}

// Input is the question that a request asks; Identity is left to the caller.
// The error is a *Refusal: a path that is not canonical, a request that no
// route names, or headers that ask for another one.
func (r *Routes) Input(req *http.Request) (Input, Route, error) {
	if req.URL == nil || req.URL.Opaque != "" || req.URL.RawPath != "" && req.URL.RawPath != req.URL.Path || strings.Contains(req.URL.EscapedPath(), "%") {
		// RawPath is the path as sent, where that is not what Path would be sent
		// as; package url would send some bytes encoded that may be sent plain.
		return Input{}, Route{}, refusePath(0, "it holds encoded bytes")
	}
	path := req.URL.Path
	if err := CheckPath(path); err != nil {
		return Input{}, Route{}, err
	}
	if h := rewrites(req.Header); h != "" {
		return Input{}, Route{}, &Refusal{Cause: CauseMalformed, Detail: "header " + h + " asks for another method or path than the one decided on"}
	}
	route, resource, ok := r.Match(req.Method, path)
	if !ok {
		return Input{}, Route{}, &Refusal{Cause: CauseNoRoute, Detail: "no route names this method and path"}
	}
	in := Input{Operation: route.Operation, Resource: resource, Request: Request{Method: req.Method, Path: path}}
	for i, key := range r.keys {
		if values := req.Header[key]; len(values) > 0 {
			in.Request.Headers = append(in.Request.Headers, Header{Name: r.headers[i], Values: values})
		}
	}
	return in, route, nil
}
