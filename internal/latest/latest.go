// Package latest holds a value that one goroutine replaces whole and many
// read and wait for.
package latest

import "sync"

// Value is the latest T. The zero Value holds the zero T. Readers must not
// change what they load.
type Value[T any] struct {
	mu      sync.Mutex // guards value, changed
	value   T
	changed chan struct{}
}

// Load returns the value and a channel that is closed when it is replaced.
func (v *Value[T]) Load() (T, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changed == nil {
		v.changed = make(chan struct{})
	}
	return v.value, v.changed
}

// Get returns the value.
func (v *Value[T]) Get() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value
}

// Store replaces the value and wakes every waiter.
func (v *Value[T]) Store(t T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value = t
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}
