package holder

import (
	"context"
	"errors"
	"sync/atomic"
)

// Life is the one Run of a source, and its Close.
type Life struct {
	begun  atomic.Bool
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // Run returned
}

// NewLife returns a life that has not begun.
func NewLife() *Life {
	l := &Life{done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Begin fails but the first time.
func (l *Life) Begin() error {
	if !l.begun.CompareAndSwap(false, true) {
		return errors.New("Run is called once, and Open has called it already")
	}
	return nil
}

// Run runs f until ctx or the life ends. Begin was called before.
func (l *Life) Run(ctx context.Context, f func(context.Context) error) error {
	defer close(l.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	return f(ctx)
}

// Close ends Run and waits for it.
func (l *Life) Close() {
	l.cancel()
	if l.begun.Load() {
		<-l.done
	}
}
