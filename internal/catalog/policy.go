package catalog

import (
	"slices"

	"github.com/legation-io/legation/api/v1alpha1"
	"github.com/legation-io/legation/internal/binding"
)

// Policy is a declared Policy. It is immutable; a change makes another.
type Policy struct {
	// Name is "<namespace>/<name>".
	Name string
	// Namespace of the declaration.
	Namespace string
	// Revision of the store: grows with every change.
	Revision int64

	declared *v1alpha1.Policy
	memo     Memo
}

func newPolicy(o *object) *Policy {
	p := o.typed.(*v1alpha1.Policy)
	return &Policy{Name: p.Namespace + "/" + p.Name, Namespace: p.Namespace, Revision: o.revision, declared: p}
}

// Spec is what was declared. It must not be changed.
func (p *Policy) Spec() *v1alpha1.PolicySpec { return &p.declared.Spec }

// Binds reports whether it is about an identity as one node holds it.
func (p *Policy) Binds(i *Identity, node string) bool {
	return binding.Binds(p.Namespace, p.declared.Spec.Subjects, i.Namespace, i.SPIFFEID(node))
}

// Memo remembers what others derived from this policy.
func (p *Policy) Memo() *Memo { return &p.memo }

// PoliciesFor are the policies that bind an identity which a node may hold,
// by name.
func (s *Snapshot) PoliciesFor(node string) []*Policy {
	if s.policies.len() == 0 {
		return nil
	}
	all := s.IdentitiesFor(node)
	in := map[string][]*Identity{} // by namespace
	for _, i := range all {
		in[i.Namespace] = append(in[i.Namespace], i)
	}
	var found []*Policy
	s.policies.under("", func(_ string, p *Policy) bool {
		of := in[p.Namespace]
		if p.Namespace == binding.MeshNamespace {
			of = all
		}
		if slices.ContainsFunc(of, func(i *Identity) bool { return p.Binds(i, node) }) {
			found = append(found, p)
		}
		return true
	})
	return found
}
