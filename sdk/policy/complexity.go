package policy

import (
	"github.com/open-policy-agent/opa/v1/ast"
)

// What the compiler takes more than linear time for, some of it exponential:
// a few hundred bytes can keep it busy for minutes (tried, with each of them).
const (
	maxRules          = 1000
	maxDepth          = 512    // terms within terms, e.g. a + b + c + …
	maxComprehensions = 6      // within each other; template strings are some
	maxKeys           = 3      // objects within the keys of objects: each doubles what its text needs
	maxElse           = 64     // of one rule
	maxUnfolded       = 200000 // terms of a rule with all rules that it uses written out
)

// complexity refuses modules that would take the compiler too long.
func complexity(modules map[string]*ast.Module, names []string) Errors {
	var wrong Errors
	rules := 0
	unfold := unfolding{rules: map[string][]*ast.Rule{}, sizes: map[string]int{}}
	for _, file := range names {
		m := modules[file]
		if m == nil {
			continue
		}
		for _, r := range m.Rules {
			rules++
			elses := 0
			for e := r.Else; e != nil; e = e.Else {
				elses++
			}
			depth, comprehensions := nesting(r)
			switch {
			case elses > maxElse:
				wrong.at(r.Loc(), "a rule with %d else; at most %d", elses, maxElse)
			case comprehensions > maxComprehensions:
				wrong.at(r.Loc(), "%d comprehensions or template strings within each other; at most %d: give the inner ones names", comprehensions, maxComprehensions)
			case keys(r) > maxKeys:
				wrong.at(r.Loc(), "more than %d objects within the keys of each other", maxKeys)
			case depth > maxDepth:
				wrong.at(r.Loc(), "an expression %d terms deep; at most %d", depth, maxDepth)
			}
			name := ruleName(r)
			unfold.rules[name] = append(unfold.rules[name], r)
		}
	}
	if rules > maxRules {
		wrong = append(wrong, mistake("%d rules; a policy has at most %d", rules, maxRules)...)
	}
	if len(wrong) > 0 {
		return wrong
	}
	for _, file := range names {
		if m := modules[file]; m != nil {
			for _, r := range m.Rules {
				if unfold.size(ruleName(r)) > maxUnfolded {
					wrong.at(r.Loc(), "rule %s, with all rules that it uses written out, has more than %d terms: use fewer rules that are built out of rules twice", ruleName(r), maxUnfolded)
					return wrong
				}
			}
		}
	}
	return nil
}

func ruleName(r *ast.Rule) string {
	if ref := r.Head.Ref(); len(ref) > 0 {
		if v, ok := ref[0].Value.(ast.Var); ok {
			return string(v)
		}
	}
	return string(r.Head.Name)
}

// nesting measures a rule by recursion, which the bounds on a module's bytes
// and the parser's own keep finite.
func nesting(r *ast.Rule) (depth, comprehensions int) {
	nowDepth, nowComprehensions := 0, 0
	step := func(x any, by int) {
		switch x := x.(type) {
		case *ast.Term:
			nowDepth += by
		case ast.Value:
			switch x.(type) {
			case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension, *ast.TemplateString:
				nowComprehensions += by
			}
		}
		depth, comprehensions = max(depth, nowDepth), max(comprehensions, nowComprehensions)
	}
	var visitor *ast.BeforeAfterVisitor
	visitor = ast.NewBeforeAfterVisitor(func(x any) bool {
		step(x, 1)
		if t, ok := x.(*ast.TemplateString); ok { // the visitor leaves it out
			for _, part := range t.Parts {
				visitor.Walk(part)
			}
		}
		return false
	}, func(x any) { step(x, -1) })
	visitor.Walk(r)
	return depth, comprehensions
}

// keys is how many objects lie in the keys of each other. A key that is no
// string is taken for its JSON text, whose quotes are escaped once more in the
// next one.
func keys(r *ast.Rule) int {
	most := 0
	ast.WalkTerms(r, func(t *ast.Term) bool {
		o, ok := t.Value.(ast.Object)
		if ok {
			most = max(most, keysOf(o))
		}
		return most > maxKeys
	})
	return most
}

func keysOf(v any) int {
	most := 0
	ast.WalkTerms(v, func(t *ast.Term) bool {
		o, ok := t.Value.(ast.Object)
		if !ok {
			return most > maxKeys
		}
		o.Foreach(func(k, value *ast.Term) {
			if most <= maxKeys {
				most = max(most, 1+keysOf(k), keysOf(value))
			}
		})
		return true
	})
	return most
}

// unfolding is how large rules are with those that they use written out,
// which is what the type checker walks. A name stands for all rules of that
// name, in whatever package: the size is an upper bound.
type unfolding struct {
	rules map[string][]*ast.Rule
	sizes map[string]int // 0 while it is being measured: recursion is refused by the compiler
}

func (u *unfolding) size(name string) int {
	if n, ok := u.sizes[name]; ok {
		return n
	}
	u.sizes[name] = 0
	total := 0
	for _, r := range u.rules[name] {
		if plain(r) {
			total++
			continue
		}
		ast.WalkTerms(r, func(t *ast.Term) bool {
			total++
			used := ""
			switch v := t.Value.(type) {
			case ast.Var:
				used = string(v)
			case ast.String:
				used = string(v)
			}
			if used != name && len(u.rules[used]) > 0 {
				total += u.size(used)
			}
			total = min(total, maxUnfolded+1)
			return total > maxUnfolded
		})
	}
	u.sizes[name] = min(total, maxUnfolded+1)
	return u.sizes[name]
}

// plain reports whether the rule's value is one scalar, however it came about.
func plain(r *ast.Rule) bool {
	for ; r != nil; r = r.Else {
		if r.Head.Key != nil || r.Head.Value == nil || !ast.IsScalar(r.Head.Value.Value) {
			return false
		}
	}
	return true
}
