package catalog

import (
	"context"
	"fmt"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// namespaceKind registers a namespace, in the namespace "system". The key
// puts the namespace before the kind, so this is how declared resources are
// read without the journal that lies among them.
const namespaceKind = "namespace"

func (c *Catalog) namespaceKey(name string) string {
	return store.Key{TrustDomain: c.trustDomain.Name(), Namespace: store.System, Kind: namespaceKind, Name: name}.String()
}

func (c *Catalog) storeKey(k *kind, namespace, name string) string {
	return store.Key{TrustDomain: c.trustDomain.Name(), Namespace: namespace, Kind: k.plural, Name: name}.String()
}

// guardKey is written by every apply and delete, on the condition that it is
// as they saw it: what they checked against the rest of the catalog holds
// when they commit, on whichever replica.
func (c *Catalog) guardKey() string {
	return store.Key{TrustDomain: c.trustDomain.Name(), Namespace: store.System, Kind: "catalog", Name: "guard"}.String()
}

// list reads everything and returns the snapshot that follows from.
func (c *Catalog) list(ctx context.Context, from *Snapshot) (*Snapshot, error) {
	next, _, err := c.reread(ctx, from)
	return next, err
}

func (c *Catalog) relist(ctx context.Context) error {
	next, delta, err := c.reread(ctx, c.snapshot.Get())
	if err != nil {
		return err
	}
	c.publish(next, delta)
	return nil
}

// attempts bounds how often reread starts over because of writers.
const attempts = 16

// reread brings a snapshot up to date by reading all of it. Namespaces are
// read one by one; the guard, read before and after, says whether they are
// of one moment.
func (c *Catalog) reread(ctx context.Context, from *Snapshot) (*Snapshot, *Delta, error) {
	for range attempts {
		before, err := c.readGuard(ctx)
		if err != nil {
			return nil, nil, err
		}
		next, delta, err := c.readAll(ctx, from)
		if err != nil {
			return nil, nil, err
		}
		after, err := c.readGuard(ctx)
		if err != nil {
			return nil, nil, err
		}
		if before == after {
			next.guard = after
			return next, delta, nil
		}
	}
	return nil, nil, fault.New(fault.Unavailable, "the declared resources changed %d times while they were read; try again", attempts)
}

func (c *Catalog) readGuard(ctx context.Context) (int64, error) {
	kv, err := c.store.Get(ctx, c.guardKey())
	if fault.Is(err, fault.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the catalog's guard: %w", err)
	}
	return kv.Revision, nil
}

func (c *Catalog) readAll(ctx context.Context, from *Snapshot) (*Snapshot, *Delta, error) {
	namespaces, revision, err := c.store.List(ctx, c.namespaceKey(""))
	if err != nil {
		return nil, nil, fmt.Errorf("list the namespaces: %w", err)
	}
	b := newBuilder(from)
	gone := map[string]bool{}
	mark := func(id string) { gone[id] = true }
	from.objects.under("", func(id string, _ *object) bool { mark(id); return true })
	from.quarantined.under("", func(id string, _ *Quarantined) bool { mark(id); return true })
	for _, kv := range namespaces {
		key, err := store.ParseKey(kv.Key)
		if err != nil {
			continue
		}
		b.next.namespaces.set(key.Name, struct{}{})
		kvs, _, err := c.store.List(ctx, store.Prefix+c.trustDomain.Name()+"/"+key.Name+"/")
		if err != nil {
			return nil, nil, fmt.Errorf("list namespace %s: %w", key.Name, err)
		}
		for _, kv := range kvs {
			key, err := store.ParseKey(kv.Key)
			if err != nil || !ours(key) {
				continue
			}
			k, _ := kindByPlural(key.Kind)
			id := objectID(k, key.Namespace, key.Name)
			delete(gone, id)
			if have, ok := from.objects.get(id); ok && have.revision == kv.Revision {
				continue
			}
			c.event(b, key, kv, false)
		}
	}
	for id := range gone {
		b.next.quarantined.delete(id)
		b.put(id, nil)
	}
	next, delta := b.finish()
	next.Revision = revision
	return next, delta, nil
}
