package catalog

import "sync"

// Memo remembers what was derived from an immutable value, so that it is
// derived once for all that ask, and forgotten with the value.
type Memo struct {
	m sync.Map
}

// Do returns what is remembered under key, or makes and remembers it. make
// must be a pure function of the value and the key.
func (m *Memo) Do(key any, make func() any) any {
	if v, ok := m.m.Load(key); ok {
		return v
	}
	v, _ := m.m.LoadOrStore(key, make())
	return v
}
