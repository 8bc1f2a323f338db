package memory

import (
	"bytes"
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/legation-io/legation/internal/store"
)

// watchQueue bounds the batches a watcher may lag behind; one more ends it.
const watchQueue = 256

// watcher has no goroutine: writers put into its channel, and end it when the
// channel is full.
type watcher struct {
	prefix string
	after  int64
	out    chan store.Batch
	stop   func() bool // of the context's callback
}

// Watch delivers the changes under a prefix after a revision. A watcher that
// lags more than 256 transactions is ended: its channel is closed, list again.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.closed || after < s.compacted {
		closed := make(chan store.Batch)
		close(closed)
		return closed
	}
	i := sort.Search(len(s.history), func(i int) bool { return s.history[i].Revision > after })
	var past []store.Batch
	for _, b := range s.history[i:] {
		if b, ok := filter(b, prefix, after); ok {
			past = append(past, b)
		}
	}
	w := &watcher{prefix: prefix, after: after, out: make(chan store.Batch, len(past)+watchQueue)}
	for _, b := range past {
		w.out <- b
	}
	s.watchers[w] = struct{}{}
	w.stop = context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.endLocked(w)
	})
	return w.out
}

// offer reports false when the watcher lags too far.
func (w *watcher) offer(b store.Batch) bool {
	b, ok := filter(b, w.prefix, w.after)
	if !ok {
		return true
	}
	select {
	case w.out <- b:
		return true
	default:
		return false
	}
}

func (s *Store) endLocked(w *watcher) {
	if _, ok := s.watchers[w]; !ok {
		return
	}
	delete(s.watchers, w)
	w.stop()
	close(w.out)
}

// filter returns the part of a batch under a prefix, in values of its own.
func filter(b store.Batch, prefix string, after int64) (store.Batch, bool) {
	if b.Revision <= after || !slices.ContainsFunc(b.Events, func(e store.Event) bool { return strings.HasPrefix(e.KV.Key, prefix) }) {
		return store.Batch{}, false
	}
	out := store.Batch{Revision: b.Revision}
	for _, e := range b.Events {
		if strings.HasPrefix(e.KV.Key, prefix) {
			e.KV.Value = bytes.Clone(e.KV.Value)
			out.Events = append(out.Events, e)
		}
	}
	return out, true
}
