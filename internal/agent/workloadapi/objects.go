package workloadapi

import (
	"context"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Objects is where the control plane keeps what the replicas of an identity
// share; *upstream.Link is one.
type Objects interface {
	GetObject(ctx context.Context, r *nodev1.GetObjectRequest) (*nodev1.GetObjectResponse, error)
	PutObject(ctx context.Context, r *nodev1.PutObjectRequest) (*nodev1.PutObjectResponse, error)
	DeleteObject(ctx context.Context, r *nodev1.DeleteObjectRequest) (*nodev1.DeleteObjectResponse, error)
	ListObjects(ctx context.Context, r *nodev1.ListObjectsRequest) (*nodev1.ListObjectsResponse, error)
}

// objects is the service legation.workload.v1.Objects: it says who calls and
// for which of its identities; the control plane judges that again, and keys
// and sizes.
type objects struct {
	workloadv1.UnimplementedObjectsServer
	s *Server
}

const maxObject = 256 << 10 // bytes of a value (workload.proto)

// What the programs of one entry may ask for and store: half of what the
// control plane lets the node, so that no one of them can have it all.
var (
	objectCalls = limit.Rate{PerSecond: 50, Burst: 250}
	objectBytes = limit.Rate{PerSecond: 256 << 10, Burst: 10 << 20}
)

// as attests the caller and runs do with the entry that gives it an identity:
// the one it names, or its first.
func (o objects) as(ctx context.Context, method, spiffeID string, do func(context.Context, Objects, *nodev1.Entry) error) error {
	err := o.entitled(ctx, spiffeID, do)
	if fault.Is(err, fault.Conflict) { // workload.proto: of a condition that does not hold
		err = status.Error(codes.FailedPrecondition, err.Error())
	}
	return o.s.answer(ctx, method, err)
}

func (o objects) entitled(ctx context.Context, spiffeID string, do func(context.Context, Objects, *nodev1.Entry) error) error {
	c, err := o.s.enter(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	if o.s.p.Objects == nil {
		return fault.New(fault.Unavailable, "this agent keeps no objects")
	}
	entries, err := c.entries(spiffeID)
	if err != nil {
		return err
	}
	if err := c.same(); err != nil { // before anything is read or changed in its name
		return err
	}
	if delay, ok := o.s.objectRate.Take(entries[0].Name, 1); !ok {
		return limit.Error("calls about objects of entry "+entries[0].Name, delay)
	}
	return do(c.ctx, o.s.p.Objects, entries[0])
}

// Get returns one object.
func (o objects) Get(ctx context.Context, r *workloadv1.GetObjectRequest) (*workloadv1.Object, error) {
	var found *workloadv1.Object
	err := o.as(ctx, workloadv1.Objects_Get_FullMethodName, r.GetSpiffeId(), func(ctx context.Context, all Objects, e *nodev1.Entry) error {
		res, err := all.GetObject(ctx, &nodev1.GetObjectRequest{Entry: e.Name, SpiffeId: e.SpiffeId, Key: r.GetKey()})
		found = object(res.GetObject())
		return err
	})
	return found, err
}

// Put stores one.
func (o objects) Put(ctx context.Context, r *workloadv1.PutObjectRequest) (*workloadv1.PutObjectResponse, error) {
	resp := &workloadv1.PutObjectResponse{}
	return resp, o.as(ctx, workloadv1.Objects_Put_FullMethodName, r.GetSpiffeId(), func(ctx context.Context, all Objects, e *nodev1.Entry) error {
		// What the control plane counts for the node is not spent on what it refuses.
		if n := len(r.GetValue()); n > maxObject {
			return fault.New(fault.Invalid, "a value of %d bytes: at most %d are kept", n, maxObject)
		}
		if delay, ok := o.s.objectBytes.Take(e.Name, len(r.GetValue())); !ok {
			return limit.Error("bytes stored by entry "+e.Name, delay)
		}
		res, err := all.PutObject(ctx, &nodev1.PutObjectRequest{Entry: e.Name, SpiffeId: e.SpiffeId, Key: r.GetKey(), Value: r.GetValue(), IfRevision: r.IfRevision})
		resp.Revision = res.GetRevision()
		return err
	})
}

// Delete removes one.
func (o objects) Delete(ctx context.Context, r *workloadv1.DeleteObjectRequest) (*workloadv1.DeleteObjectResponse, error) {
	return &workloadv1.DeleteObjectResponse{}, o.as(ctx, workloadv1.Objects_Delete_FullMethodName, r.GetSpiffeId(), func(ctx context.Context, all Objects, e *nodev1.Entry) error {
		_, err := all.DeleteObject(ctx, &nodev1.DeleteObjectRequest{Entry: e.Name, SpiffeId: e.SpiffeId, Key: r.GetKey(), IfRevision: r.IfRevision})
		return err
	})
}

// List tells which there are.
func (o objects) List(ctx context.Context, r *workloadv1.ListObjectsRequest) (*workloadv1.ListObjectsResponse, error) {
	resp := &workloadv1.ListObjectsResponse{}
	return resp, o.as(ctx, workloadv1.Objects_List_FullMethodName, r.GetSpiffeId(), func(ctx context.Context, all Objects, e *nodev1.Entry) error {
		res, err := all.ListObjects(ctx, &nodev1.ListObjectsRequest{Entry: e.Name, SpiffeId: e.SpiffeId, Prefix: r.GetPrefix()})
		for _, found := range res.GetObjects() {
			resp.Objects = append(resp.Objects, object(found))
		}
		return err
	})
}

func object(o *nodev1.StoredObject) *workloadv1.Object {
	return &workloadv1.Object{Key: o.GetKey(), Value: o.GetValue(), Size: o.GetSize(), Revision: o.GetRevision(), ModifiedUnixNano: o.GetModifiedUnixNano()}
}
