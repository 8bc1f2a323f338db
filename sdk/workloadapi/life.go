package workloadapi

import (
	"context"
	"errors"
	"sync/atomic"
)

// life is the one Run of a source, and its Close.
type life struct {
	begun  atomic.Bool
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	done   chan struct{} // run returned
}

func newLife() *life {
	l := &life{done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

func (l *life) begin() error {
	if !l.begun.CompareAndSwap(false, true) {
		return errors.New("Run is called once, and Open has called it already")
	}
	return nil
}

// run runs f until ctx or the life ends.
func (l *life) run(ctx context.Context, f func(context.Context) error) error {
	defer close(l.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	return f(ctx)
}

func (l *life) close() {
	l.cancel()
	if l.begun.Load() {
		<-l.done
	}
}
