package catalog

import "github.com/google/btree"

// tree is a sorted map whose copies share structure: copy is O(1), and a
// write to a copy costs the path to one leaf. One goroutine writes to a copy
// before it is published; after that it is only read.
type tree[T any] struct {
	t *btree.BTreeG[pair[T]]
}

type pair[T any] struct {
	key   string
	value T
}

func newTree[T any]() tree[T] {
	return tree[T]{btree.NewG(32, func(a, b pair[T]) bool { return a.key < b.key })}
}

func (t tree[T]) copy() tree[T] { return tree[T]{t.t.Clone()} }

func (t tree[T]) get(key string) (T, bool) {
	n, ok := t.t.Get(pair[T]{key: key})
	return n.value, ok
}

func (t tree[T]) set(key string, value T) { t.t.ReplaceOrInsert(pair[T]{key, value}) }
func (t tree[T]) delete(key string)       { t.t.Delete(pair[T]{key: key}) }
func (t tree[T]) len() int                { return t.t.Len() }

// under calls f for each key with the prefix, in order, until f says false.
// The key is given without the prefix.
func (t tree[T]) under(prefix string, f func(rest string, value T) bool) {
	t.t.AscendGreaterOrEqual(pair[T]{key: prefix}, func(n pair[T]) bool {
		if len(n.key) < len(prefix) || n.key[:len(prefix)] != prefix {
			return false
		}
		return f(n.key[len(prefix):], n.value)
	})
}

// sep joins the parts of composite keys; no part can contain it.
const sep = "\x00"
