package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/api/v1alpha1"
	"github.com/legation-io/legation/internal/fault"
)

// twice finds resources that are declared twice in one apply.
func twice(resources []*declared) []*adminv1.Problem {
	first := map[string]*declared{}
	var problems []*adminv1.Problem
	for _, d := range resources {
		other, dup := first[d.key()]
		if !dup {
			first[d.key()] = d
			continue
		}
		problems = append(problems, d.problem("metadata.name", "keep one of the two, or give it another name",
			"%s %s/%s is declared twice, first in %s:%d", d.kind.name, d.object.GetNamespace(), d.object.GetName(), other.file, other.line))
	}
	return problems
}

func (d *declared) problem(path, fix, message string, args ...any) *adminv1.Problem {
	return &adminv1.Problem{File: d.file, Line: uint32(max(d.lineOf(path), 0)), Field: path, Message: fmt.Sprintf(message, args...), Fix: fix}
}

// inOrder sorts problems by document and line.
func inOrder(documents []*adminv1.Document, problems []*adminv1.Problem) []*adminv1.Problem {
	place := map[string]int{}
	for n, d := range documents {
		if _, ok := place[d.File]; !ok {
			place[d.File] = n
		}
	}
	slices.SortStableFunc(problems, func(a, b *adminv1.Problem) int {
		return cmp.Or(cmp.Compare(place[a.File], place[b.File]), cmp.Compare(a.Line, b.Line), strings.Compare(a.Field, b.Field))
	})
	return problems
}

// conflicts finds what is wrong between the pending resources and everything
// else, by looking at the snapshot that would follow.
func (c *Catalog) conflicts(now *Snapshot, resources []*declared, pending []*object) []*adminv1.Problem {
	b := newBuilder(now)
	order := map[string]int{} // where a resource stands in this apply
	for n, o := range pending {
		b.put(o.id(), o)
		order[o.id()] = n
	}
	next, _ := b.finish()
	var problems []*adminv1.Problem
	for n, o := range pending {
		// Of two resources of one apply the later one is to blame.
		blame := func(k *kind, name string) bool {
			at, here := order[k.plural+"/"+name]
			return !here || at < n
		}
		switch o.kind {
		case kindIdentity:
			i, _ := next.identities.get(o.typed.GetNamespace() + "/" + o.typed.GetName())
			problems = append(problems, identityConflicts(next, resources[n], i, func(other *Identity) bool {
				return other.Name != i.Name && blame(kindIdentity, other.Name)
			})...)
		case kindService:
			problems = append(problems, serviceConflicts(next, resources[n], func(other string) bool {
				return blame(kindService, other)
			})...)
		}
	}
	return problems
}

func identityConflicts(next *Snapshot, d *declared, i *Identity, blame func(*Identity) bool) []*adminv1.Problem {
	var problems []*adminv1.Problem
	sameID := func(other *Identity) {
		switch {
		case !blame(other):
		case other.Namespace != i.Namespace:
			problems = append(problems, d.problem("spec.spiffeID", "choose a path of its own, e.g. under /ns/"+i.Namespace+"/",
				"this SPIFFE ID belongs to namespace %s, where WorkloadIdentity %s declares it", other.Namespace, other.Name))
		case other.Node == i.Node && slices.Equal(other.Selectors, i.Selectors):
			problems = append(problems, d.problem("metadata.name", "delete one of the two",
				"the same SPIFFE ID, node and selectors are declared by WorkloadIdentity %s", other.Name))
		}
	}
	if i.pattern == nil {
		next.byID.under(i.fixed+sep, func(_ string, other *Identity) bool { sameID(other); return true })
		next.patterns.under("", func(_ string, other *Identity) bool {
			if other.Has(i.fixed) {
				sameID(other)
			}
			return true
		})
	} else {
		literal, _, _ := strings.Cut(resolve(next.TrustDomain, i.declared, sep), sep)
		next.byID.under(literal, func(_ string, other *Identity) bool {
			if i.Has(other.fixed) {
				sameID(other)
			}
			return true
		})
		next.patterns.under("", func(_ string, other *Identity) bool {
			if other.pattern.String() == i.pattern.String() {
				sameID(other)
			}
			return true
		})
	}
	for n, name := range i.SDSNames {
		next.bySDSName.under(name+sep, func(_ string, other *Identity) bool {
			if blame(other) && shareCaller(i, other) {
				problems = append(problems, d.problem(fmt.Sprintf("spec.sdsNames[%d]", n), "choose another name",
					"SDS name %q is also one of WorkloadIdentity %s, and one process can have both", name, other.Name))
			}
			return true
		})
	}
	return problems
}

// shareCaller reports whether every caller of one is a caller of the other
// somewhere.
func shareCaller(a, b *Identity) bool {
	if a.Node != b.Node && a.Node != v1alpha1.EveryNode && b.Node != v1alpha1.EveryNode {
		return false
	}
	return subset(a.Selectors, b.Selectors) || subset(b.Selectors, a.Selectors)
}

func subset(a, b []string) bool {
	for _, s := range a {
		if _, ok := slices.BinarySearch(b, s); !ok {
			return false
		}
	}
	return true
}

// serviceConflicts refuses an address that is another service's (A47).
func serviceConflicts(next *Snapshot, d *declared, blame func(string) bool) []*adminv1.Problem {
	svc := d.object.(*corev1.Service)
	self := svc.Namespace + "/" + svc.Name
	var problems []*adminv1.Problem
	s, ok := next.services.get(self)
	if !ok {
		return nil
	}
	for n, a := range s.Addresses {
		next.byAddress.under(a.String()+sep, func(other string, _ *Service) bool {
			if other != self && blame(other) {
				problems = append(problems, d.problem(addressPath(svc, n), "choose another address", "%s is the address of Service %s", a, other))
			}
			return true
		})
	}
	return problems
}

// over reports which limit the pending resources would exceed.
func (c *Catalog) over(now *Snapshot, pending []*object) error {
	added := map[string]int{}
	for _, o := range pending {
		old, exists := now.objects.get(o.id())
		if !exists {
			added[o.kind.plural+"/"+o.typed.GetNamespace()]++
		}
		if w, ok := o.typed.(*v1alpha1.WorkloadIdentity); ok {
			added["node/"+w.Spec.Node]++
			if exists {
				added["node/"+old.typed.(*v1alpha1.WorkloadIdentity).Spec.Node]--
			}
		}
	}
	for _, key := range sortedKeys(added) {
		have, _ := now.counts.get(key)
		what, of, _ := strings.Cut(key, "/")
		limit, name := c.limits.ResourcesPerNamespace, "resourcesPerNamespace"
		switch what {
		case "node":
			limit, name = c.limits.EntriesPerNode, "entriesPerNode"
		case kindIdentity.plural:
			limit, name = c.limits.EntriesPerNamespace, "entriesPerNamespace"
		case kindPolicy.plural:
			limit, name = c.limits.PoliciesPerNamespace, "policiesPerNamespace"
		}
		if added[key] > 0 && have+added[key] > limit {
			in := "namespace " + of
			if what == "node" {
				what, in = kindIdentity.plural, "node "+of
			}
			return fault.New(fault.Limited, "%s has %d %s and would have %d, the limit is %d (limits.%s): delete some, or raise it",
				in, have, what, have+added[key], limit, name)
		}
	}
	return nil
}
