package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	maxPatternBytes = 1024
	maxGlobStars    = 8
)

// pattern says which argument of a built-in function is a pattern.
var pattern = map[string]int{
	"regex.match": 0, "regex.find_n": 0, "regex.find_all_string_submatch_n": 0, "regex.replace": 1,
	"regex.split": 0, "re_match": 0, "glob.match": 0,
}

// forbidden finds what the allow-list of functions does not: "with" over a
// function (CVE-2022-36085), and patterns that are not literals (A40). It
// looks at what was written, before the compiler rewrites it.
func forbidden(m *ast.Module) Errors {
	var wrong Errors
	call := func(at *ast.Location, terms []*ast.Term) {
		if len(terms) == 0 {
			return
		}
		name := terms[0].Value.String()
		n, ok := pattern[name]
		if !ok || len(terms) <= n+1 {
			return
		}
		literal, ok := terms[n+1].Value.(ast.String)
		switch {
		case !ok:
			wrong.at(at, "the pattern of %s is not a literal string: a name would be read as a pattern; write it out, or compare with ==, startswith or endswith", name)
		case len(literal) > maxPatternBytes:
			wrong.at(at, "the pattern of %s has %d bytes; at most %d", name, len(literal), maxPatternBytes)
		case name == "glob.match" && strings.Count(string(literal), "*") > maxGlobStars:
			wrong.at(at, "the pattern of %s has more than %d stars", name, maxGlobStars)
		}
	}
	ast.WalkNodes(m, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.Expr:
			for _, w := range x.With {
				ref, ok := w.Target.Value.(ast.Ref)
				if !ok || !ref.HasPrefix(ast.InputRootRef) && !ref.HasPrefix(ast.DefaultRootRef) {
					wrong.at(w.Loc(), `"with" replaces %s: only input and data can be replaced, never a function`, w.Target)
				}
				if _, function := ast.BuiltinMap[w.Value.Value.String()]; function {
					wrong.at(w.Loc(), `"with" puts the function %s in: only values can be put in`, w.Value)
				}
			}
			if terms, ok := x.Terms.([]*ast.Term); ok {
				call(x.Loc(), terms)
			}
		case *ast.Term:
			if c, ok := x.Value.(ast.Call); ok {
				call(x.Loc(), c)
			}
		}
		return false
	})
	return wrong
}
