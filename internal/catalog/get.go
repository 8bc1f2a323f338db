package catalog

import (
	"context"
	"slices"
	"strings"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// AllKinds as a kind means every kind.
const AllKinds = "all"

func kindsTyped(typed string) ([]*kind, error) {
	if strings.EqualFold(typed, AllKinds) {
		return kinds, nil
	}
	if k, ok := kindTyped(typed); ok {
		return []*kind{k}, nil
	}
	var known []string
	for _, k := range kinds {
		known = append(known, k.plural)
		known = append(known, k.aliases...)
	}
	if n := nearest(typed, known); n != "" {
		return nil, fault.New(fault.Invalid, "unknown kind %q: did you mean %s?", typed, n)
	}
	return nil, fault.New(fault.Invalid, "unknown kind %q: the kinds are %s, and all", typed, strings.Join(Kinds(), ", "))
}

// Get lists declared resources by kind, namespace and name. typed is a kind,
// its plural or short name, or "all"; an empty namespace is all namespaces;
// no names is all names. It returns fault.NotFound for a name that no
// resource has.
func (c *Catalog) Get(typed, namespace string, names []string) ([]*adminv1.Object, error) {
	ks, err := kindsTyped(typed)
	if err != nil {
		return nil, err
	}
	s := c.snapshot.Get()
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	var found []*adminv1.Object
	for _, k := range ks {
		prefix := k.plural + "/"
		if namespace != "" {
			prefix += namespace + "/"
		}
		s.objects.under(prefix, func(_ string, o *object) bool {
			if len(names) == 0 || slices.Contains(names, o.typed.GetName()) {
				delete(missing, o.typed.GetName())
				found = append(found, o.proto())
			}
			return true
		})
	}
	if len(missing) > 0 {
		return nil, fault.New(fault.NotFound, "no %s named %s%s", strings.ToLower(typed), strings.Join(sortedKeys(missing), ", "), in(namespace))
	}
	return found, nil
}

func in(namespace string) string {
	if namespace == "" {
		return " in any namespace"
	}
	return " in namespace " + namespace
}

// DeleteParams is one delete: by Kind and Names, or by what Documents name.
type DeleteParams struct {
	Kind, Namespace string
	Names           []string
	Documents       []*adminv1.Document
	IgnoreNotFound  bool
	Actor           string
}

// Delete removes resources in one transaction, all or none. It returns
// fault.NotFound naming what does not exist, unless that is to be ignored.
func (c *Catalog) Delete(ctx context.Context, p DeleteParams) ([]*adminv1.Applied, []*adminv1.Problem, error) {
	deleted, problems, err := c.deleteAll(ctx, p)
	c.metrics.writes.WithLabelValues("delete", result(false, problems, err)).Inc()
	return deleted, problems, err
}

// target is one resource to delete.
type target struct {
	kind            *kind
	namespace, name string
}

func (c *Catalog) deleteAll(ctx context.Context, p DeleteParams) ([]*adminv1.Applied, []*adminv1.Problem, error) {
	targets, problems, err := c.targets(p)
	if err != nil || len(problems) > 0 {
		return nil, problems, err
	}
	var deleted []*adminv1.Applied
	err = c.write(ctx, p.Actor, func(now *Snapshot) ([]store.Op, error) {
		deleted = nil
		var ops []store.Op
		var missing []string
		for _, t := range targets {
			id := objectID(t.kind, t.namespace, t.name)
			_, present := now.objects.get(id)
			_, broken := now.quarantined.get(id)
			if !present && !broken {
				missing = append(missing, t.kind.name+" "+t.namespace+"/"+t.name)
				continue
			}
			ops = append(ops, store.Op{Key: c.storeKey(t.kind, t.namespace, t.name), Delete: true})
			deleted = append(deleted, &adminv1.Applied{Kind: t.kind.name, Namespace: t.namespace, Name: t.name, Action: "deleted"})
		}
		if len(missing) > 0 && !p.IgnoreNotFound {
			return nil, fault.New(fault.NotFound, "nothing was deleted: there is no %s", strings.Join(missing, ", "))
		}
		return ops, nil
	})
	if err != nil {
		return nil, nil, err
	}
	c.log.Info("resources deleted", "actor", p.Actor, "resources", len(deleted))
	return deleted, nil, nil
}

func (c *Catalog) targets(p DeleteParams) ([]target, []*adminv1.Problem, error) {
	seen := map[target]bool{}
	var targets []target
	add := func(t target) {
		if !seen[t] {
			seen[t] = true
			targets = append(targets, t)
		}
	}
	resources, problems, err := c.read(p.Documents, p.Namespace)
	if err != nil || len(problems) > 0 {
		return nil, inOrder(p.Documents, problems), err
	}
	for _, d := range resources {
		add(target{d.kind, d.object.GetNamespace(), d.object.GetName()})
	}
	if p.Kind == "" && len(p.Names) == 0 {
		if len(targets) == 0 {
			return nil, nil, fault.New(fault.Invalid, "nothing to delete: give a kind and names, or a file")
		}
		return targets, nil, nil
	}
	k, ok := kindTyped(p.Kind)
	if !ok {
		if _, err := kindsTyped(p.Kind); err != nil {
			return nil, nil, err
		}
		return nil, nil, fault.New(fault.Invalid, "name one kind to delete, not %q", p.Kind)
	}
	if len(p.Names) == 0 {
		return nil, nil, fault.New(fault.Invalid, "name the %s to delete", k.plural)
	}
	namespace := p.Namespace
	if namespace == "" {
		namespace = DefaultNamespace
	}
	for _, n := range p.Names {
		add(target{k, namespace, n})
	}
	if len(targets) > c.limits.ResourcesPerApply {
		return nil, nil, fault.New(fault.Limited, "more than %d resources at once (limits.resourcesPerApply): delete them in parts", c.limits.ResourcesPerApply)
	}
	return targets, nil, nil
}
