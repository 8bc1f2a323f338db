package store

import (
	"github.com/legation-io/legation/internal/fault"
)

// Limits of one transaction, the same in every backend.
const (
	// MaxOps bounds the conditions and the operations of a transaction, each.
	MaxOps = 4096
	// MaxBytes bounds the keys and values of a transaction together.
	MaxBytes = 8 << 20
	// MaxKey bounds one key, in bytes.
	MaxKey = 4096
)

// Validate refuses a transaction that no backend may take: over a limit, with
// an empty key, or writing one key twice. It returns fault.Invalid.
func (t Txn) Validate() error {
	if len(t.Then) > MaxOps || len(t.If) > MaxOps {
		return fault.New(fault.Invalid, "a transaction of %d conditions and %d operations is over the limit of %d (store.MaxOps): split it",
			len(t.If), len(t.Then), MaxOps)
	}
	size := 0
	check := func(key string) error {
		switch {
		case key == "":
			return fault.New(fault.Invalid, "a transaction names an empty key")
		case len(key) > MaxKey:
			return fault.New(fault.Invalid, "a key of %d bytes is over the limit of %d (store.MaxKey): %.64q…", len(key), MaxKey, key)
		}
		size += len(key)
		return nil
	}
	for _, c := range t.If {
		if err := check(c.Key); err != nil {
			return err
		}
		if c.Revision < 0 {
			return fault.New(fault.Invalid, "condition on %s: revision %d is negative", c.Key, c.Revision)
		}
	}
	for i, op := range t.Then {
		if err := check(op.Key); err != nil {
			return err
		}
		size += len(op.Value)
		if len(t.Then) <= 8 { // short transactions need no map
			for _, other := range t.Then[:i] {
				if other.Key == op.Key {
					return twice(op.Key)
				}
			}
		}
	}
	if size > MaxBytes {
		return fault.New(fault.Invalid, "a transaction of %d bytes is over the limit of %d (store.MaxBytes): split it", size, MaxBytes)
	}
	if len(t.Then) > 8 {
		seen := make(map[string]struct{}, len(t.Then))
		for _, op := range t.Then {
			if _, dup := seen[op.Key]; dup {
				return twice(op.Key)
			}
			seen[op.Key] = struct{}{}
		}
	}
	return nil
}

func twice(key string) error {
	return fault.New(fault.Invalid, "a transaction writes %s twice", key)
}
