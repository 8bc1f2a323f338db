package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// DefaultNamespace is for documents that name none.
const DefaultNamespace = "default"

// ApplyParams is one apply.
type ApplyParams struct {
	Documents []*adminv1.Document
	// Namespace for documents that name none; empty is "default".
	Namespace string
	// DryRun checks everything and stores nothing.
	DryRun bool
	// Actor asked for it; for the log and the guard record.
	Actor string
}

// Apply checks all documents and stores all of them in one transaction, or,
// if there is one problem, none. It returns once this replica's snapshot has
// them. Errors: fault.Limited over a limit, fault.Unavailable when other
// writers or the store stand in the way.
func (c *Catalog) Apply(ctx context.Context, p ApplyParams) ([]*adminv1.Applied, []*adminv1.Problem, error) {
	applied, problems, err := c.applyAll(ctx, p)
	c.metrics.writes.WithLabelValues("apply", result(p.DryRun, problems, err)).Inc()
	return applied, problems, err
}

func result(dryRun bool, problems []*adminv1.Problem, err error) string {
	switch {
	case err != nil:
		return "failed"
	case len(problems) > 0:
		return "refused"
	case dryRun:
		return "dry_run"
	}
	return "stored"
}

func (c *Catalog) applyAll(ctx context.Context, p ApplyParams) ([]*adminv1.Applied, []*adminv1.Problem, error) {
	resources, problems, err := c.read(p.Documents, p.Namespace)
	if err != nil {
		return nil, nil, err
	}
	problems = append(problems, twice(resources)...)
	problems, err = c.checkAll(ctx, resources, problems)
	if err != nil {
		return nil, nil, err
	}
	if len(problems) > 0 {
		return nil, inOrder(p.Documents, problems), nil
	}
	pending := make([]*object, len(resources))
	for n, d := range resources {
		if pending[n], err = c.pending(d); err != nil {
			return nil, nil, err
		}
	}
	var applied []*adminv1.Applied
	err = c.write(ctx, p.Actor, func(now *Snapshot) ([]store.Op, error) {
		var ops []store.Op
		applied, ops = c.plan(now, pending)
		problems = c.conflicts(now, resources, pending)
		if len(problems) > 0 {
			return nil, nil
		}
		if err := c.over(now, pending); err != nil || p.DryRun {
			return nil, err
		}
		return ops, nil
	})
	switch {
	case err != nil:
		return nil, nil, err
	case len(problems) > 0:
		return nil, inOrder(p.Documents, problems), nil
	case !p.DryRun:
		c.log.Info("resources applied", "actor", p.Actor, "resources", len(applied))
	}
	return applied, nil, nil
}

// checkAll judges each resource by itself.
func (c *Catalog) checkAll(ctx context.Context, resources []*declared, problems []*adminv1.Problem) ([]*adminv1.Problem, error) {
	if slices.ContainsFunc(resources, func(d *declared) bool { return d.kind == kindPolicy }) {
		// Whatever a compiler can be kept busy with takes one core, and none of
		// those who declare something else.
		waiting, cancel := context.WithTimeout(ctx, catchUp)
		defer cancel()
		select {
		case c.compiling <- struct{}{}:
			defer func() { <-c.compiling }()
		case <-waiting.Done():
			return nil, fault.New(fault.Unavailable, "waiting for another apply, whose policies are compiled: %w", waiting.Err())
		}
	}
	policies := 0
	for _, d := range resources {
		if d.kind == kindPolicy {
			if policies++; policies > maxPoliciesPerApply {
				return nil, fault.New(fault.Limited, "more than %d policies at once: apply them in parts", maxPoliciesPerApply)
			}
		}
		if err := ctx.Err(); err != nil { // policies are compiled
			return nil, fault.New(fault.Unavailable, "check the resources: %w", err)
		}
		problems = append(problems, check(c.trustDomain, d)...)
	}
	return problems, nil
}

// read parses all documents.
func (c *Catalog) read(documents []*adminv1.Document, namespace string) ([]*declared, []*adminv1.Problem, error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	var resources []*declared
	var problems []*adminv1.Problem
	for _, doc := range documents {
		if len(doc.Content) > c.limits.DocumentBytes {
			return nil, nil, fault.New(fault.Limited, "%s has %d bytes, a file may have %d (limits.documentBytes): split it",
				doc.File, len(doc.Content), c.limits.DocumentBytes)
		}
		r := read(doc.File, doc.Content, namespace)
		resources = append(resources, r.declared...)
		problems = append(problems, r.problems...)
		if len(resources) > c.limits.ResourcesPerApply {
			return nil, nil, fault.New(fault.Limited, "more than %d resources at once (limits.resourcesPerApply): apply them in parts", c.limits.ResourcesPerApply)
		}
	}
	return resources, problems, nil
}

// pending is a resource on its way into the store.
func (c *Catalog) pending(d *declared) (*object, error) {
	b, err := marshal(d.kind, d.object)
	if err != nil {
		return nil, err
	}
	if len(b) > c.limits.ResourceBytes {
		return nil, fault.New(fault.Limited, "%s:%d: %s %s/%s has %d bytes, a resource may have %d (limits.resourceBytes)",
			d.file, d.line, d.kind.name, d.object.GetNamespace(), d.object.GetName(), len(b), c.limits.ResourceBytes)
	}
	return &object{kind: d.kind, typed: d.object, json: b}, nil
}

// plan is what would happen to each resource, and the operations for it.
func (c *Catalog) plan(now *Snapshot, pending []*object) ([]*adminv1.Applied, []store.Op) {
	applied := make([]*adminv1.Applied, len(pending))
	var ops []store.Op
	registered := map[string]bool{}
	for n, o := range pending {
		namespace, name := o.typed.GetNamespace(), o.typed.GetName()
		action := "created"
		_, broken := now.quarantined.get(o.id())
		if have, ok := now.objects.get(o.id()); ok && !broken && string(have.json) == string(o.json) {
			action = "unchanged"
		} else if ok || broken {
			action = "configured"
		}
		applied[n] = &adminv1.Applied{Kind: o.kind.name, Namespace: namespace, Name: name, Action: action}
		if action == "unchanged" {
			continue
		}
		ops = append(ops, store.Op{Key: c.storeKey(o.kind, namespace, name), Value: store.EncodeValue(o.kind.plural, valueVersion, o.json)})
		if _, ok := now.namespaces.get(namespace); !ok && !registered[namespace] {
			registered[namespace] = true
			ops = append(ops, store.Op{Key: c.namespaceKey(namespace), Value: store.EncodeValue(namespaceKind, 1, []byte("{}"))})
		}
	}
	return applied, ops
}

// guardRecord is the value of the guard key: the last write.
type guardRecord struct {
	Actor string    `json:"actor,omitempty"`
	At    time.Time `json:"at"`
}

// catchUp bounds how long a writer waits for this replica's snapshot.
const catchUp = 10 * time.Second

// write commits what plan makes of the newest snapshot, on the condition that
// nobody wrote since; it plans again when somebody did.
func (c *Catalog) write(ctx context.Context, actor string, plan func(*Snapshot) ([]store.Op, error)) error {
	select { // not a mutex: a caller whose ctx ends stops waiting
	case c.applying <- struct{}{}:
		defer func() { <-c.applying }()
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "waiting for another apply: %w", ctx.Err())
	}
	for range attempts {
		now := c.snapshot.Get()
		ops, err := plan(now)
		if err != nil || len(ops) == 0 {
			return err
		}
		record, err := json.Marshal(guardRecord{Actor: actor, At: c.clock.Now().UTC()})
		if err != nil {
			return fmt.Errorf("marshal the guard record: %w", err)
		}
		ops = append(ops, store.Op{Key: c.guardKey(), Value: store.EncodeValue("catalog", 1, record)})
		if err := withinTransaction(ops); err != nil {
			return err
		}
		revision, err := c.store.Commit(ctx, store.Txn{If: []store.Cond{{Key: c.guardKey(), Revision: now.guard}}, Then: ops})
		switch {
		case err == nil:
			// It is stored, whatever happens to the waiting.
			if err := c.await(ctx, revision); err != nil {
				c.log.Warn("stored, and not in the snapshot yet", "revision", revision, "error", err)
			}
			return nil
		case !fault.Is(err, fault.Conflict):
			return fmt.Errorf("store the resources: %w", err)
		}
		if err := c.await(ctx, now.guard+1); err != nil {
			return err
		}
	}
	return fault.New(fault.Unavailable, "other writers were faster %d times; try again", attempts)
}

func withinTransaction(ops []store.Op) error {
	size := 0
	for _, op := range ops {
		size += len(op.Key) + len(op.Value)
	}
	if len(ops) > store.MaxOps || size > store.MaxBytes/2 {
		return fault.New(fault.Limited, "%d resources of %d bytes are too much for one transaction: apply them in parts", len(ops), size)
	}
	return nil
}

// await waits until the snapshot reflects the guard at revision or later.
func (c *Catalog) await(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	for {
		s, changed := c.snapshot.Load()
		if s.guard >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "this replica's catalog is behind the store (at revision %d, want %d); try again: %w", s.Revision, revision, ctx.Err())
		}
	}
}
