package renewal

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// A Filter says which certificates a Scheduler takes care of: those that pass
// every part of it. The zero value passes all.
type Filter struct {
	// Selector is a Kubernetes label selector, e.g. "team=web,tier in (a,b),!legacy".
	Selector string `json:"selector,omitempty"`
	// Namespaces, Names and Issuers are globs as in path.Match, of which one
	// must match. An issuer is "Kind/name", e.g. "ClusterIssuer/*"; a glob
	// without a slash matches its name alone.
	Namespaces []string `json:"namespaces,omitempty"`
	Names      []string `json:"names,omitempty"`
	Issuers    []string `json:"issuers,omitempty"`
}

// ParseFilter reads a Filter in YAML or JSON, as strictly as Parse; an empty
// document passes all.
func ParseFilter(data []byte) (Filter, error) {
	var f Filter
	if err := decodeStrict(data, &f); err != nil {
		return Filter{}, err
	}
	_, err := f.compile()
	return f, err
}

// FilterFile returns a function for Config.Filters that reads a file.
func FilterFile(name string) func() (Filter, error) {
	return func() (Filter, error) {
		raw, err := os.ReadFile(name)
		if err != nil {
			return Filter{}, fmt.Errorf("read the filter: %w", err)
		}
		f, err := ParseFilter(raw)
		if err != nil {
			return Filter{}, fmt.Errorf("%s: %w", name, err)
		}
		return f, nil
	}
}

// matcher is a Filter that was checked.
type matcher struct {
	Filter
	terms []term
}

func (f Filter) compile() (*matcher, error) {
	terms, err := parseSelector(f.Selector)
	errs := []error{err}
	for field, globs := range map[string][]string{"namespaces": f.Namespaces, "names": f.Names, "issuers": f.Issuers} {
		for i, g := range globs {
			if _, err := path.Match(g, ""); err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %q is no glob", field, i, g))
			}
		}
	}
	return &matcher{f, terms}, errors.Join(errs...)
}

func (m *matcher) match(c *Certificate) bool {
	ref := c.Spec.IssuerRef
	return anyGlob(m.Namespaces, c.Key().Namespace) && anyGlob(m.Names, c.Key().Name) &&
		(len(m.Issuers) == 0 || slices.ContainsFunc(m.Issuers, func(g string) bool {
			if strings.Contains(g, "/") {
				return glob(g, ref.String())
			}
			return glob(g, ref.Name)
		})) &&
		!slices.ContainsFunc(m.terms, func(t term) bool { return !t.match(c.Metadata.Labels) })
}

func anyGlob(globs []string, s string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(g string) bool { return glob(g, s) })
}

func glob(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return ok && err == nil
}

// term is one requirement of a label selector: with values, the label has one
// of them; without, it is there.
type term struct {
	key    string
	values []string
	not    bool
}

func (t term) match(labels map[string]string) bool {
	v, ok := labels[t.key]
	if t.values != nil {
		ok = ok && slices.Contains(t.values, v)
	}
	return ok != t.not
}

// parseSelector reads Kubernetes' selectors: =, ==, !=, in, notin, key, !key.
func parseSelector(s string) ([]term, error) {
	var terms []term
	for _, part := range splitOutsideParentheses(s) {
		part = strings.TrimSpace(part)
		t, err := parseTerm(part)
		if err != nil {
			return nil, fmt.Errorf("selector: %w", err)
		}
		terms = append(terms, t)
	}
	return terms, nil
}

func splitOutsideParentheses(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	var out []string
	depth, start := 0, 0
	for i, r := range s {
		switch {
		case r == '(':
			depth++
		case r == ')':
			depth--
		case r == ',' && depth == 0:
			out, start = append(out, s[start:i]), i+1
		}
	}
	return append(out, s[start:])
}

func parseTerm(s string) (term, error) {
	wrong := func() (term, error) {
		return term{}, fmt.Errorf("%q is none of: key=value, key!=value, key in (a,b), key notin (a,b), key, !key", s)
	}
	var t term
	switch {
	case strings.ContainsRune(s, '('):
		head, list, _ := strings.Cut(s, "(")
		list, ok := strings.CutSuffix(list, ")")
		fields := strings.Fields(head)
		if !ok || len(fields) != 2 || fields[1] != "in" && fields[1] != "notin" {
			return wrong()
		}
		t.key, t.not, t.values = fields[0], fields[1] == "notin", []string{}
		for v := range strings.SplitSeq(list, ",") {
			t.values = append(t.values, strings.TrimSpace(v))
		}
	case strings.Contains(s, "!="):
		k, v, _ := strings.Cut(s, "!=")
		t = term{key: strings.TrimSpace(k), values: []string{strings.TrimSpace(v)}, not: true}
	case strings.Contains(s, "="):
		k, v, _ := strings.Cut(s, "=")
		t = term{key: strings.TrimSpace(k), values: []string{strings.TrimSpace(strings.TrimPrefix(v, "="))}}
	default:
		key, not := strings.CutPrefix(s, "!")
		t = term{key: strings.TrimSpace(key), not: not}
	}
	if !isLabelKey(t.key) || slices.ContainsFunc(t.values, func(v string) bool { return v != "" && !isLabelValue(v) }) {
		return wrong()
	}
	return t, nil
}

// isLabelKey is Kubernetes' qualified name: an optional DNS prefix and a name.
func isLabelKey(s string) bool {
	if prefix, name, ok := strings.Cut(s, "/"); ok {
		return isSubdomain(prefix) && isLabelValue(name)
	}
	return isLabelValue(s)
}

func isLabelValue(s string) bool {
	alphanumeric := func(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' }
	if s == "" || len(s) > 63 || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alphanumeric(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}
