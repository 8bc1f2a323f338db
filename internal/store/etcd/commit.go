package etcd

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// Commit applies the transaction, whole or not at all, and returns when it is
// on the disk. Concurrent commits share a write to it. When ctx ends while
// the transaction is under way, fault.Unavailable says that its outcome is
// not known.
func (s *Store) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	defer s.open.RUnlock()
	if err := s.halt.err(); err != nil {
		return 0, err
	}
	if err := s.gate.admit(txn); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()      // Close does not wait long
	defer context.AfterFunc(s.halt.ctx, cancel)() // a failed disk never answers
	resp, err := s.srv.Txn(ctx, request(txn))
	if err != nil {
		return 0, s.commitError(ctx, err)
	}
	if !resp.Succeeded {
		return 0, s.conflict(txn)
	}
	return resp.Header.Revision, nil
}

func request(txn store.Txn) *pb.TxnRequest {
	req := &pb.TxnRequest{
		Compare: make([]*pb.Compare, len(txn.If)),
		Success: make([]*pb.RequestOp, len(txn.Then)),
	}
	for i, c := range txn.If {
		req.Compare[i] = &pb.Compare{
			Key:         []byte(c.Key),
			Target:      pb.Compare_MOD,
			Result:      pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: c.Revision},
		}
	}
	for i, op := range txn.Then {
		if op.Delete {
			req.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(op.Key)}}}
			continue
		}
		req.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(op.Key), Value: seal(op.Key, op.Value)}}}
	}
	return req
}

// conflict names the condition that does not hold, as far as it can be seen
// after the fact.
func (s *Store) conflict(txn store.Txn) error {
	for _, c := range txn.If {
		r, err := s.kv.Range(context.Background(), []byte(c.Key), nil, mvcc.RangeOptions{})
		if err != nil {
			break
		}
		have := int64(0)
		if len(r.KVs) > 0 {
			have = r.KVs[0].ModRevision
		}
		if have != c.Revision {
			return store.ConflictError(c, have)
		}
	}
	return fault.New(fault.Conflict, "a condition of the transaction did not hold: read again and retry")
}

func (s *Store) commitError(ctx context.Context, err error) error {
	if failed := s.halt.err(); failed != nil {
		return failed
	}
	switch {
	case errors.Is(err, etcderrors.ErrTooManyRequests):
		return fault.New(fault.Limited, "commit: the store is behind with %w", err)
	case errors.Is(err, etcderrors.ErrRequestTooLarge):
		return fault.New(fault.Invalid, "commit: %w: split the transaction", err)
	case errors.Is(err, etcderrors.ErrStopped):
		return errClosed
	case ctx.Err() != nil:
		return fault.New(fault.Unavailable, "commit: %w; its outcome is not known: read before trying again", ctx.Err())
	}
	return fault.New(fault.Unavailable, "commit: %w", err)
}
