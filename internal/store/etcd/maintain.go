package etcd

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/legation-io/legation/internal/fault"
)

const (
	// keepRevisions is how far back watches can begin. Watches live in this
	// process and follow closely: this is ample.
	keepRevisions = 20_000
	// compactEvery is how often history beyond that is dropped.
	compactEvery = time.Minute
	// makeRoomEvery bounds how often a full store tries to make room.
	makeRoomEvery = time.Second
)

// maintain drops history until Close.
func (s *Store) maintain() {
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.halt.ctx.Done():
			return
		case <-tick.C:
			s.compact(s.cfg.history)
		case <-s.gate.full:
			s.compact(0) // watchers that lag list again
			s.release()
			// The pages are given back with the next batch; until then
			// another try frees nothing.
			pause(s.ctx, makeRoomEvery)
		}
	}
}

// roomKey is written when room is made; nobody reads it.
var roomKey = []byte("legation/room")

// release makes the page file count as free what compaction gave back: pages
// that one transaction frees can be used after the next, and a full store,
// which refuses every write, has no next.
func (s *Store) release() {
	tx := s.srv.Backend().BatchTx()
	for range 2 {
		tx.LockOutsideApply()
		tx.UnsafePut(schema.Meta, roomKey, nil)
		tx.Unlock()
		s.srv.Backend().ForceCommit()
	}
}

// compact drops all history but the last keep revisions.
func (s *Store) compact(keep int64) {
	upTo := s.kv.Rev() - keep
	if upTo <= max(s.kv.FirstRev(), 1) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	if err := s.Compact(ctx, upTo); err != nil && ctx.Err() == nil {
		s.log.Warn("the store's history could not be compacted", "revision", upTo, "error", err)
	}
}

// Compact forgets the changes up to a revision: a watch that asks for them is
// closed at once. What is stored stays. It happens by itself; callers need it
// only to make room at a time of their choice.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.open.RUnlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	defer context.AfterFunc(s.halt.ctx, cancel)()
	_, err := s.srv.Compact(ctx, &pb.CompactionRequest{Revision: revision})
	switch {
	case errors.Is(err, mvcc.ErrFutureRev):
		return fault.New(fault.Invalid, "cannot compact up to revision %d: it is newer than the newest", revision)
	case errors.Is(err, mvcc.ErrCompacted):
		return nil
	case err != nil:
		return s.commitError(ctx, err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
