package catalog

import (
	"sync"
	"sync/atomic"
)

// maxRemembered bounds a Memo: its keys may come from outside.
const maxRemembered = 1024

// Memo remembers what was derived from an immutable value, so that it is
// derived once for all that ask, and forgotten with the value.
type Memo struct {
	m sync.Map
	n atomic.Int32
}

// Do returns what is remembered under key, or makes it, and remembers it
// unless there is much already. make must be a pure function of the value
// and the key.
func (m *Memo) Do(key any, make func() any) any {
	if v, ok := m.m.Load(key); ok {
		return v
	}
	made := make()
	if m.n.Load() >= maxRemembered {
		return made
	}
	v, had := m.m.LoadOrStore(key, made)
	if !had {
		m.n.Add(1)
	}
	return v
}
