package identity

import "sync/atomic"

// Memory is a Source that is told what it has. Other sources are built on it.
// The zero value is ready to use and has nothing yet.
type Memory struct {
	state atomic.Pointer[state]
}

type state struct {
	snapshot *Snapshot
	changed  chan struct{}
	err      error
}

// NewMemory returns a source that has s.
func NewMemory(s *Snapshot) *Memory {
	m := &Memory{}
	m.Set(s)
	return m
}

// Set replaces the snapshot and wakes whoever waits.
func (m *Memory) Set(s *Snapshot) { m.replace(&state{snapshot: s, changed: make(chan struct{})}) }

// Fail makes Current answer err and wakes whoever waits. What was there before
// is no longer served.
func (m *Memory) Fail(err error) { m.replace(&state{err: err, changed: make(chan struct{})}) }

func (m *Memory) replace(next *state) {
	if old := m.current(); m.state.CompareAndSwap(old, next) {
		close(old.changed)
		return
	}
	m.replace(next)
}

func (m *Memory) current() *state {
	if s := m.state.Load(); s != nil {
		return s
	}
	m.state.CompareAndSwap(nil, &state{err: &NotReady{Source: "the program to set it"}, changed: make(chan struct{})})
	return m.state.Load()
}

// Current implements Source.
func (m *Memory) Current() (*Snapshot, <-chan struct{}, error) {
	s := m.current()
	return s.snapshot, s.changed, s.err
}
