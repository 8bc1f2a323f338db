package node

import (
	"context"
	"fmt"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/objects"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// about is what every request about objects has.
type about interface {
	GetTrustDomain() string
	GetEntry() string
	GetSpiffeId() string
}

// admitObject admits a call about the objects of an identity that the node
// holds; bytes is what it would write.
func (s *Server) admitObject(ctx context.Context, action string, r about, bytes int, do func(spiffeid.ID) error) error {
	caller, err := s.admitCall(ctx, r.GetTrustDomain())
	var id spiffeid.ID
	if err == nil {
		_, id, err = s.entitled(caller, r.GetEntry(), r.GetSpiffeId())
	}
	if err == nil && s.p.Objects == nil {
		err = fault.New(fault.Unavailable, "this control plane keeps no objects")
	}
	if err == nil && bytes > objects.MaxValue+objects.MaxKey {
		err = fault.New(fault.Invalid, "%d bytes of key and value: at most %d and %d are kept", bytes, objects.MaxKey, objects.MaxValue)
	}
	if err == nil {
		if wait, ok := s.objectRate.Take(caller.Node, bytes); !ok {
			err = limit.Error("bytes stored by node "+caller.Node, wait)
		}
	}
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: action, Object: r.GetSpiffeId(), Err: err})
		return limit.GRPC(fmt.Errorf("%s: %w", action, err))
	}
	if err := do(id); err != nil {
		if fault.KindOf(err) == fault.Internal {
			s.p.Log.Error("objects", "action", action, "node", caller.Node, "spiffe_id", id.String(), "error", err)
		}
		return limit.GRPC(fmt.Errorf("%s: %w", action, err))
	}
	return nil
}

// GetObject reads a value of an identity that this node holds.
func (s *Server) GetObject(ctx context.Context, r *nodev1.GetObjectRequest) (*nodev1.GetObjectResponse, error) {
	resp := &nodev1.GetObjectResponse{}
	return resp, s.admitObject(ctx, "GetObject", r, 0, func(id spiffeid.ID) error {
		object, err := s.p.Objects.Get(ctx, id, r.GetKey())
		resp.Object = stored(object)
		return err
	})
}

// PutObject stores one.
func (s *Server) PutObject(ctx context.Context, r *nodev1.PutObjectRequest) (*nodev1.PutObjectResponse, error) {
	resp := &nodev1.PutObjectResponse{}
	return resp, s.admitObject(ctx, "PutObject", r, len(r.GetValue())+len(r.GetKey()), func(id spiffeid.ID) (err error) {
		resp.Revision, err = s.p.Objects.Put(ctx, id, r.GetKey(), r.GetValue(), r.IfRevision)
		return err
	})
}

// DeleteObject removes one.
func (s *Server) DeleteObject(ctx context.Context, r *nodev1.DeleteObjectRequest) (*nodev1.DeleteObjectResponse, error) {
	return &nodev1.DeleteObjectResponse{}, s.admitObject(ctx, "DeleteObject", r, len(r.GetKey()), func(id spiffeid.ID) error {
		return s.p.Objects.Delete(ctx, id, r.GetKey(), r.IfRevision)
	})
}

// ListObjects tells which there are.
func (s *Server) ListObjects(ctx context.Context, r *nodev1.ListObjectsRequest) (*nodev1.ListObjectsResponse, error) {
	resp := &nodev1.ListObjectsResponse{}
	return resp, s.admitObject(ctx, "ListObjects", r, 0, func(id spiffeid.ID) error {
		list, err := s.p.Objects.List(ctx, id, r.GetPrefix())
		for _, object := range list {
			resp.Objects = append(resp.Objects, stored(object))
		}
		return err
	})
}

func stored(o objects.Object) *nodev1.StoredObject {
	return &nodev1.StoredObject{Key: o.Key, Value: o.Value, Size: uint64(o.Size), Revision: o.Revision, ModifiedUnixNano: o.Modified.UnixNano()}
}
