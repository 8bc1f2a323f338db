package catalog

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/api/v1alpha1"
	"github.com/legation-io/legation/internal/binding"
	"github.com/legation-io/legation/sdk/policy"
)

const (
	maxPolicyModules  = 64
	maxPolicySubjects = 256
	maxPolicyBytes    = 192 << 10 // of modules and data together
	// maxPoliciesPerApply bounds what one apply may have compiled.
	maxPoliciesPerApply = 50
)

var (
	moduleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.rego$`)
	queryName  = regexp.MustCompile(`^data(\.[A-Za-z_][A-Za-z0-9_]*)+$`)
)

func (c *checker) policy(p *v1alpha1.Policy) {
	if len(p.Spec.Subjects) > maxPolicySubjects {
		c.problem("spec.subjects", "use patterns, or several policies", "%d subjects; at most %d", len(p.Spec.Subjects), maxPolicySubjects)
	}
	for i, s := range p.Spec.Subjects {
		at := "spec.subjects[" + strconv.Itoa(i) + "]"
		if err := binding.Check(s, c.trustDomain); err != nil {
			c.problem(at, fmt.Sprintf("write a SPIFFE ID, e.g. spiffe://%s/ns/%s/sa/app, or /sa/* for every one", c.trustDomain.Name(), p.Namespace), "%q is not a subject: %v", s, err)
			continue
		}
		rest, shaped := strings.CutPrefix(s, "spiffe://"+c.trustDomain.Name()+"/ns/")
		if owner, _, _ := strings.Cut(rest, "/"); shaped && owner != p.Namespace && owner != "*" && owner != "**" && p.Namespace != binding.MeshNamespace {
			c.problem(at, "declare it in namespace "+owner+", or in "+binding.MeshNamespace, "%s belongs to namespace %s, this policy to %s", s, owner, p.Namespace)
		}
		if slices.Contains(p.Spec.Subjects[:i], s) {
			c.problem(at, "remove one of the two", "subject %q is given twice", s)
		}
	}
	switch p.Spec.RegoVersion {
	case "", "v0", "v1":
	default:
		c.problem("spec.regoVersion", "write v1 or v0", "%q is not a version of Rego", p.Spec.RegoVersion)
	}
	if p.Spec.Query != "" && (len(p.Spec.Query) > 512 || !queryName.MatchString(p.Spec.Query)) {
		c.problem("spec.query", "write data.<package>.<rule>, e.g. "+policy.DefaultQuery, "%q is not a query", p.Spec.Query)
	}
	switch n := len(p.Spec.Modules); {
	case n == 0:
		c.problem("spec.modules", "add at least one, e.g. allow.rego: |", "a policy without modules denies everything")
	case n > maxPolicyModules:
		c.problem("spec.modules", "join some of them", "%d modules; at most %d", n, maxPolicyModules)
	}
	size := len(p.Spec.Data)
	for _, name := range sortedKeys(p.Spec.Modules) {
		size += len(p.Spec.Modules[name])
		if !moduleName.MatchString(name) {
			c.problem(join("spec.modules", name), "name it like allow.rego: letters, digits, . - and _", "%q is not a module's name", name)
		}
	}
	if size > maxPolicyBytes {
		c.problem("spec.modules", "split it into several policies: all of them must allow", "%d bytes of modules and data; at most %d", size, maxPolicyBytes)
	}
	// What is stored was compiled when it was applied. A control plane that
	// knows another OPA must not lose it: programs compile it again.
	if len(c.problems) == 0 && len(c.declared.broken) == 0 && !c.declared.stored {
		c.compile(p)
	}
}

// compile refuses what the programs would refuse, by the same rules. It
// evaluates nothing: an evaluation is bounded in time, but one call of a
// function, and one comparison of values that hold a value twice, need
// memory and stack without end, and what kills the program that a policy is
// for must not kill the control plane (A58).
func (c *checker) compile(p *v1alpha1.Policy) {
	_, err := policy.Compile(context.Background(), policy.Policy{Modules: p.Spec.Modules, RegoV0: p.Spec.RegoVersion == "v0", Data: p.Spec.Data, Query: p.Spec.Query})
	if err == nil {
		return
	}
	var list policy.Errors
	if !errors.As(err, &list) {
		c.problem("spec.modules", "correct the policy", "%v", err)
		return
	}
	for _, e := range list {
		const fix = "correct the Rego; what a policy may call is in the documentation of sdk/policy"
		at := "spec.modules"
		switch {
		case e.File == "data":
			at = "spec.data"
		case e.File != "":
			at = join("spec.modules", e.File)
		}
		line := c.declared.lineOf(at)
		// The text of a block scalar begins on the line below its key.
		if source := p.Spec.Modules[e.File]; strings.Contains(source, "\n") && line > 0 && !strings.HasSuffix(c.declared.file, ".json") {
			line += e.Line
		}
		c.problems = append(c.problems, &adminv1.Problem{File: c.declared.file, Line: uint32(max(line, 0)), Field: at, Message: e.Error(), Fix: fix})
	}
}
