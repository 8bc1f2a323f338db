package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// Reads go to this member's applied state with no round through raft. That is
// linearizable as long as it is the only member: a commit is acknowledged
// after it is applied here, nothing is applied before it is on the disk, and
// Open returns after everything acknowledged earlier is applied again.

// Get returns the value, or fault.NotFound.
func (s *Store) Get(ctx context.Context, key string) (store.KV, error) {
	if key == "" {
		return store.KV{}, fault.New(fault.Invalid, "get: the key is empty")
	}
	r, err := s.readRange(ctx, []byte(key), nil)
	if err != nil {
		return store.KV{}, err
	}
	if len(r.KVs) == 0 {
		return store.KV{}, fault.New(fault.NotFound, "nothing is stored as %s", key)
	}
	return toKV(&r.KVs[0])
}

// List returns all values under the literal prefix, and the revision.
func (s *Store) List(ctx context.Context, prefix string) ([]store.KV, int64, error) {
	key, end := bounds(prefix)
	r, err := s.readRange(ctx, key, end)
	if err != nil {
		return nil, 0, err
	}
	var out []store.KV
	if len(r.KVs) > 0 {
		out = make([]store.KV, len(r.KVs))
	}
	for i := range r.KVs {
		if out[i], err = toKV(&r.KVs[i]); err != nil {
			return nil, 0, err
		}
	}
	return out, r.Rev, nil
}

func (s *Store) readRange(ctx context.Context, key, end []byte) (*mvcc.RangeResult, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.open.RUnlock()
	r, err := s.kv.Range(ctx, key, end, mvcc.RangeOptions{})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "read the store: %w", err)
	}
	return r, nil
}

// Revision is the newest revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	defer s.open.RUnlock()
	return s.kv.Rev(), nil
}

// begin keeps the server from being closed until s.open.RUnlock; it holds no
// lock when it fails.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.open.RLock()
	err := s.halt.readErr()
	if s.closed {
		err = errClosed
	}
	if err != nil {
		s.open.RUnlock()
	}
	return err
}

func toKV(kv *mvccpb.KeyValue) (store.KV, error) {
	value, ok := unseal(kv.Key, kv.Value)
	if !ok {
		return store.KV{}, fault.New(fault.Internal, "the stored value of %s is damaged (checksum): restore a snapshot", kv.Key)
	}
	return store.KV{
		Key:            string(kv.Key),
		Value:          value,
		Revision:       kv.ModRevision,
		CreateRevision: kv.CreateRevision,
	}, nil
}

// bounds is etcd's range of all keys with a prefix. An empty end that is not
// nil means no bound.
func bounds(prefix string) (key, end []byte) {
	key = []byte(prefix)
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] < 0xff {
			end = append([]byte{}, key[:i+1]...)
			end[i]++
			return key, end
		}
	}
	return key, []byte{}
}
