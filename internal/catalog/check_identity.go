package catalog

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/api/v1alpha1"
)

const (
	maxTTL    = 72 * time.Hour
	maxJWTTTL = 24 * time.Hour
)

func (c *checker) identity(w *v1alpha1.WorkloadIdentity) {
	c.template(w)
	switch {
	case w.Spec.Node == "":
		c.problem("spec.node", `add node: the name of a node, or "*" for every node`, "the identity names no node")
	case w.Spec.Node != v1alpha1.EveryNode && !nodeName(w.Spec.Node):
		c.problem("spec.node", `use letters, digits, ., - and _, or "*" for every node`, "%q is not a node's name", w.Spec.Node)
	}
	if len(w.Spec.Selectors) == 0 {
		c.problem("spec.selectors", `add at least one, e.g. - "unix:uid:1000"`, "without selectors nobody has this identity")
	}
	seen := map[string]bool{}
	for i, s := range w.Spec.Selectors {
		at := "spec.selectors[" + strconv.Itoa(i) + "]"
		c.selector(at, s)
		if seen[s] {
			c.problem(at, "remove one of the two", "selector %q is given twice", s)
		}
		seen[s] = true
	}
	c.duration("spec.ttl", w.Spec.TTL, time.Second, maxTTL)
	c.duration("spec.jwtTTL", w.Spec.JWTTTL, time.Second, maxJWTTTL)
	for i, n := range w.Spec.DNSNames {
		at := "spec.dnsNames[" + strconv.Itoa(i) + "]"
		if len(n) > 253 || !dnsName.MatchString(n) {
			c.problem(at, "write a lower-case host name without wildcard, such as app.example.org", "%q is not a DNS name", n)
		}
		if slices.Contains(w.Spec.DNSNames[:i], n) {
			c.problem(at, "remove one of the two", "DNS name %q is given twice", n)
		}
	}
	for i, n := range w.Spec.SDSNames {
		at := "spec.sdsNames[" + strconv.Itoa(i) + "]"
		c.sdsName(at, n)
		if slices.Contains(w.Spec.SDSNames[:i], n) {
			c.problem(at, "remove one of the two", "SDS name %q is given twice", n)
		}
	}
	if len(w.Spec.Hint) > 1024 {
		c.problem("spec.hint", "shorten it to 1024 bytes", "the hint has %d bytes", len(w.Spec.Hint))
	}
}

var variable = regexp.MustCompile(`\{([^{}]*)\}`)

var variables = []string{"trustDomain", "namespace", "name", "node"}

// template checks the SPIFFE ID with every variable filled in.
func (c *checker) template(w *v1alpha1.WorkloadIdentity) {
	const at = "spec.spiffeID"
	t := templateOf(w)
	known := true
	for _, m := range variable.FindAllStringSubmatch(t, -1) {
		if !slices.Contains(variables, m[1]) {
			known = false
			c.problem(at, didYouMean(m[1], variables), "unknown variable {%s}", m[1])
		}
	}
	if !known {
		return
	}
	if strings.ContainsAny(variable.ReplaceAllString(t, ""), "{}") {
		c.problem(at, "write variables as {name}", "%q has an unmatched brace", t)
		return
	}
	node := w.Spec.Node
	if node == v1alpha1.EveryNode || !nodeName(node) {
		node = "node"
	}
	if !label.MatchString(w.Namespace) || !subdomain.MatchString(w.Name) {
		return // said already; the template cannot be judged
	}
	id, ok := c.id(at, resolve(c.trustDomain, w, node))
	if !ok {
		return
	}
	// A namespace speaks for itself alone (A47).
	if rest, ok := strings.CutPrefix(id.Path(), "/ns/"); ok {
		if owner, _, _ := strings.Cut(rest, "/"); owner != w.Namespace {
			c.problem(at, "declare it in namespace "+owner+", or choose another path",
				"%s belongs to namespace %s, this is declared in %s", id, owner, w.Namespace)
		}
	}
}

func templateOf(w *v1alpha1.WorkloadIdentity) string {
	if w.Spec.SPIFFEID == "" {
		return v1alpha1.DefaultSPIFFEID
	}
	return w.Spec.SPIFFEID
}

func resolve(td spiffeid.TrustDomain, w *v1alpha1.WorkloadIdentity, node string) string {
	return strings.NewReplacer("{trustDomain}", td.Name(), "{namespace}", w.Namespace,
		"{name}", w.Name, "{node}", node).Replace(templateOf(w))
}

// selectorTypes are all types of selector, in SPIRE's spelling; the value's
// form is judged by the function.
var selectorTypes = map[string]func(string) string{
	"unix:uid":                 number,
	"unix:gid":                 number,
	"unix:supplementary_gid":   number,
	"unix:user":                word,
	"unix:group":               word,
	"unix:supplementary_group": word,
	"unix:path":                absolute,
	"unix:sha256":              digest,
	"cgroup":                   absolute,
}

func (c *checker) selector(at, s string) {
	for typ, form := range selectorTypes {
		if value, ok := strings.CutPrefix(s, typ+":"); ok {
			if wants := form(value); wants != "" {
				c.problem(at, "write "+typ+":"+wants, "selector %q has a bad value", s)
			}
			return
		}
	}
	typ := s
	if i := strings.IndexByte(s, ':'); i >= 0 {
		typ = s[:i]
		if j := strings.IndexByte(s[i+1:], ':'); j >= 0 {
			typ = s[:i+1+j]
		}
	}
	if _, ok := selectorTypes["unix:"+strings.SplitN(s, ":", 2)[0]]; ok {
		c.problem(at, "write unix:"+s, "unknown type of selector in %q", s)
		return
	}
	c.problem(at, didYouMean(typ, sortedKeys(selectorTypes)), "unknown type of selector in %q", s)
}

// The forms return "" for a good value, else what to write.

func number(s string) string {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return "<number>, e.g. 1000"
	}
	return ""
}

func word(s string) string {
	if s == "" || len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "<name>, without spaces"
	}
	return ""
}

func absolute(s string) string {
	if !strings.HasPrefix(s, "/") || path.Clean(s) != s || len(s) > 4096 || strings.ContainsRune(s, 0) {
		return "</absolute/path>, without . and .. and trailing /"
	}
	return ""
}

func digest(s string) string {
	if len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return "<64 lower-case hex digits>"
	}
	return ""
}

// sdsName refuses what SDS already serves under that name.
func (c *checker) sdsName(at, n string) {
	switch {
	case n == "default" || n == "ROOTCA" || n == "ALL" || strings.Contains(n, "://"):
		c.problem(at, "choose another name, e.g. app-cert", "SDS name %q has a meaning already", n)
	case n == "" || len(n) > 253 || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' }):
		c.problem(at, "use 1 to 253 printable ASCII characters without spaces and *", "%q is not an SDS name", n)
	}
}
