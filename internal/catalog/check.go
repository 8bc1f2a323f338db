package catalog

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/api/v1alpha1"
	"github.com/legation-io/legation/internal/store"
)

// checker judges one resource by itself and collects every mistake.
type checker struct {
	trustDomain spiffeid.TrustDomain
	declared    *declared
	problems    []*adminv1.Problem
}

func (c *checker) problem(path, fix, message string, args ...any) {
	if c.declared.silent(path) {
		return
	}
	c.problems = append(c.problems, &adminv1.Problem{
		File: c.declared.file, Line: uint32(max(c.declared.lineOf(path), 0)), Field: path,
		Message: fmt.Sprintf(message, args...), Fix: fix,
	})
}

// check judges one resource that was read or stored.
func check(td spiffeid.TrustDomain, d *declared) []*adminv1.Problem {
	c := &checker{trustDomain: td, declared: d}
	c.meta(d.object)
	d.kind.check(c, d.object)
	return c.problems
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)                              // RFC 1123
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`) // RFC 1123
	segment   = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)                                                 // SPIFFE-ID 2.2
	labelKey  = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelVal  = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
	dnsName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)
)

const nameFix = "use lower-case letters, digits, - and . (RFC 1123), starting and ending with a letter or digit"

func (c *checker) meta(o metav1.Object) {
	name, namespace := o.GetName(), o.GetNamespace()
	switch {
	case name == "" && o.GetGenerateName() != "":
		c.problem("metadata.generateName", "give metadata.name", "names are not generated here")
	case name == "":
		c.problem("metadata.name", "add metadata: {name: …}", "the %s has no name", c.declared.kind.name)
	case len(name) > 253 || !subdomain.MatchString(name):
		c.problem("metadata.name", nameFix, "%q is not a name", name)
	}
	switch {
	case !label.MatchString(namespace):
		c.problem("metadata.namespace", "use lower-case letters, digits and -, at most 63 (RFC 1123)", "%q is not a namespace", namespace)
	case namespace == store.System:
		c.problem("metadata.namespace", "choose another namespace", "namespace %q belongs to Legation itself", namespace)
	}
	c.labels("metadata.labels", o.GetLabels())
}

func (c *checker) labels(path string, labels map[string]string) {
	for _, k := range sortedKeys(labels) {
		if len(k) > 253+1+63 || !labelKey.MatchString(k) {
			c.problem(join(path, k), "use letters, digits, -, _ and ., with an optional domain prefix and /", "%q is not a label's name", k)
		}
		if v := labels[k]; !labelVal.MatchString(v) {
			c.problem(join(path, k), "use at most 63 letters, digits, -, _ and .", "%q is not a label's value", v)
		}
	}
}

// nodeName checks that a node's name can be a segment of a SPIFFE ID.
func nodeName(name string) bool {
	return len(name) <= 253 && segment.MatchString(name) && name != "." && name != ".."
}

// id checks a full SPIFFE ID of this trust domain (A02).
func (c *checker) id(path, s string) (spiffeid.ID, bool) {
	if len(s) > 2048 { // SPIFFE-ID 2.3
		c.problem(path, "shorten it", "a SPIFFE ID has at most 2048 bytes, this has %d", len(s))
		return spiffeid.ID{}, false
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		c.problem(path, c.idFix(s), "%q is not a SPIFFE ID: %v", s, err)
		return spiffeid.ID{}, false
	}
	switch {
	case id.TrustDomain() != c.trustDomain:
		c.problem(path, fmt.Sprintf("write spiffe://%s%s", c.trustDomain.Name(), id.Path()),
			"%q is of trust domain %s, this control plane's is %s", s, id.TrustDomain().Name(), c.trustDomain.Name())
	case id.Path() == "":
		c.problem(path, fmt.Sprintf("add a path, e.g. spiffe://%s/ns/default/sa/app", c.trustDomain.Name()),
			"%q names a trust domain, not a workload", s)
	case id.Path() == "/legation" || strings.HasPrefix(id.Path(), "/legation/"):
		c.problem(path, "choose another path", "%q: paths under /legation/ belong to Legation itself", s)
	default:
		return id, true
	}
	return spiffeid.ID{}, false
}

func (c *checker) idFix(s string) string {
	domain, rest, ok := strings.Cut(strings.TrimPrefix(strings.ToLower(s), "spiffe://"), "/")
	if strings.HasPrefix(strings.ToLower(s), "spiffe://") && ok && domain != strings.SplitN(s[len("spiffe://"):], "/", 2)[0] {
		lower := "spiffe://" + domain + "/" + s[len(s)-len(rest):]
		if _, err := spiffeid.FromString(lower); err == nil {
			return "write " + lower
		}
	}
	return fmt.Sprintf("write spiffe://%s/<path>: segments of letters, digits, ., - and _, none of them empty, . or ..", c.trustDomain.Name())
}

// ids reads the annotation that lists expected SPIFFE IDs.
func (c *checker) ids(o metav1.Object) {
	list, ok := o.GetAnnotations()[v1alpha1.AnnotationSPIFFEIDs]
	if !ok {
		return
	}
	path := join("metadata.annotations", v1alpha1.AnnotationSPIFFEIDs)
	if strings.TrimSpace(list) == "" {
		c.problem(path, "list at least one SPIFFE ID, or remove the annotation", "the list of SPIFFE IDs is empty")
		return
	}
	for _, s := range splitIDs(list) {
		c.id(path, s)
	}
}

func splitIDs(list string) []string {
	ids := strings.Split(list, ",")
	for i, s := range ids {
		ids[i] = strings.TrimSpace(s)
	}
	return ids
}

func (c *checker) duration(path, s string, least, most time.Duration) time.Duration {
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		c.problem(path, "write a duration such as 45s, 90m or 1h30m", "%q is not a duration", s)
	case d < least || d > most:
		c.problem(path, fmt.Sprintf("write a duration from %s to %s", least, most), "%s is out of range", s)
	case d%time.Second != 0:
		c.problem(path, "write whole seconds", "%s has a fraction of a second", s)
	}
	return d
}

func (c *checker) address(path, s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		c.problem(path, "write an IPv4 or IPv6 address; names are not resolved here", "%q is not an IP address", s)
	case a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6():
		c.problem(path, "write the plain address of one endpoint", "%s cannot be connected to from elsewhere", s)
	default:
		return a, true
	}
	return netip.Addr{}, false
}
