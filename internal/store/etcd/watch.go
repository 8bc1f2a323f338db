package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/legation-io/legation/internal/store"
)

// watchQueue bounds the batches ready for a watcher. A watcher that lags more
// is fed from the history on the disk, until that is compacted away.
const watchQueue = 64

// Watch delivers the changes under a prefix after a revision.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan store.Batch {
	out := make(chan store.Batch, watchQueue)
	if s.begin(ctx) != nil {
		close(out)
		return out
	}
	defer s.open.RUnlock()
	if after < s.kv.FirstRev() {
		close(out) // compacted
		return out
	}
	stream := s.kv.NewWatchStream()
	key, end := bounds(prefix)
	if len(key) == 0 {
		key = []byte{0} // the smallest key there can be
	}
	if _, err := stream.Watch(clientv3.AutoWatchID, key, end, after+1); err != nil {
		s.log.Error("watch refused by etcd", "prefix", prefix, "error", err)
		stream.Close()
		close(out)
		return out
	}
	s.wg.Go(func() {
		defer close(out)
		defer stream.Close()
		s.forward(ctx, stream, out)
	})
	return out
}

func (s *Store) forward(ctx context.Context, stream mvcc.WatchStream, out chan<- store.Batch) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case resp, ok := <-stream.Chan():
			if !ok || resp.CompactRevision != 0 {
				return
			}
			if !s.send(ctx, resp.Events, out) {
				return
			}
		}
	}
}

// send cuts etcd's response, which never ends within a transaction, into
// transactions.
func (s *Store) send(ctx context.Context, events []mvccpb.Event, out chan<- store.Batch) bool {
	for len(events) > 0 {
		revision := events[0].Kv.ModRevision
		n := 1
		for n < len(events) && events[n].Kv.ModRevision == revision {
			n++
		}
		batch := store.Batch{Revision: revision, Events: make([]store.Event, n)}
		for i := range n {
			e, err := toEvent(&events[i])
			if err != nil {
				s.log.Error("watch ended", "error", err)
				return false
			}
			batch.Events[i] = e
		}
		select {
		case out <- batch:
		case <-ctx.Done():
			return false
		case <-s.ctx.Done():
			return false
		}
		events = events[n:]
	}
	return true
}

func toEvent(e *mvccpb.Event) (store.Event, error) {
	if e.Type == mvccpb.DELETE {
		return store.Event{KV: store.KV{Key: string(e.Kv.Key), Revision: e.Kv.ModRevision}, Deleted: true}, nil
	}
	kv, err := toKV(e.Kv)
	return store.Event{KV: kv}, err
}
