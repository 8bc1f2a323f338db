package limit

import "sync"

// Slots counts how many of something each key holds at once. Memory is
// bounded by what is held.
type Slots struct {
	perKey int

	mu   sync.Mutex // guards held
	held map[string]int
}

// NewSlots allows each key perKey at once; 0 does not limit.
func NewSlots(perKey int) *Slots {
	return &Slots{perKey: perKey, held: map[string]int{}}
}

// Acquire takes a slot, or returns false when the key holds all of its own.
// release gives it back; calling it again does nothing.
func (s *Slots) Acquire(key string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perKey > 0 && s.held[key] >= s.perKey {
		return func() {}, false
	}
	s.held[key]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[key]--; s.held[key] <= 0 {
			delete(s.held, key)
		}
	}), true
}

// Held is how many slots the key holds.
func (s *Slots) Held(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[key]
}
