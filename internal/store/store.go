// Package store keeps what must survive: revisioned keys with transactions
// and watches, in etcd's model. It decides nothing about what it keeps.
package store

import (
	"context"
	"fmt"
	"strings"
)

// Prefix is the root of all keys of this layout.
const Prefix = "/legation/v1/"

// FormatKey holds which version wrote the data and the oldest that may read it.
const FormatKey = "/legation/format"

// Key names a value: /legation/v1/<trust domain>/<namespace>/<kind>/<name>.
// No part is empty; only Name may contain '/'.
type Key struct {
	TrustDomain string
	Namespace   string
	Kind        string
	Name        string
}

// String is the key as stored.
func (k Key) String() string {
	return Prefix + k.TrustDomain + "/" + k.Namespace + "/" + k.Kind + "/" + k.Name
}

// ParseKey is the inverse of Key.String.
func ParseKey(s string) (Key, error) {
	rest, ok := strings.CutPrefix(s, Prefix)
	parts := strings.SplitN(rest, "/", 4)
	if !ok || len(parts) != 4 || parts[0] == "" || parts[1] == "" || parts[2] == "" || parts[3] == "" {
		return Key{}, fmt.Errorf("key %q is not %s<trust domain>/<namespace>/<kind>/<name>", s, Prefix)
	}
	return Key{parts[0], parts[1], parts[2], parts[3]}, nil
}

// System is the namespace of what belongs to no tenant: authorities, nodes,
// tokens, segments, revocations.
const System = "system"

// KV is one stored value.
type KV struct {
	Key   string
	Value []byte
	// Revision of the store at which this value was written.
	Revision int64
	// CreateRevision is the revision at which the key came to be.
	CreateRevision int64
}

// Cond must hold for a transaction to commit: the key's Revision is as given;
// 0 means the key does not exist.
type Cond struct {
	Key      string
	Revision int64
}

// Op writes or, with Delete, removes a key. Deleting an absent key is no error.
type Op struct {
	Key    string
	Value  []byte
	Delete bool
}

// Txn commits all of Then if all of If hold, else nothing.
type Txn struct {
	If   []Cond
	Then []Op
}

// Event is one change seen by a watch.
type Event struct {
	KV      KV // for a deletion: Key and Revision only
	Deleted bool
}

// Batch is all changes of one transaction within the watched prefix.
type Batch struct {
	Revision int64
	Events   []Event
}

// Store is the small interface every backend has.
type Store interface {
	// Get returns the value, or fault.NotFound. Reads are linearizable.
	Get(ctx context.Context, key string) (KV, error)
	// List returns all values under a prefix in key order, and the revision
	// of the store they were read at.
	List(ctx context.Context, prefix string) ([]KV, int64, error)
	// Commit applies a transaction durably and returns its revision;
	// fault.Conflict when a condition does not hold, fault.Limited when the
	// store is full (nothing was written).
	Commit(ctx context.Context, txn Txn) (int64, error)
	// Watch delivers the changes under a prefix after a revision, in order,
	// each transaction whole, until ctx ends or the store closes, when the
	// channel is closed. A revision that was compacted away closes the
	// channel at once: list again.
	Watch(ctx context.Context, prefix string, after int64) <-chan Batch
	// Revision is the newest revision this store knows.
	Revision(ctx context.Context) (int64, error)
	Close() error
}
