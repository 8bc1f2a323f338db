package upstream

import (
	"context"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// GetObject reads a value that the replicas of an identity share.
func (l *Link) GetObject(ctx context.Context, r *nodev1.GetObjectRequest) (res *nodev1.GetObjectResponse, err error) {
	r.TrustDomain = l.p.TrustDomain.Name()
	err = l.call(ctx, "read an object", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.GetObject(ctx, r)
		return err
	})
	return res, err
}

// PutObject stores one. A connection that ended under it is tried once more,
// so that a condition may be found broken by the first attempt.
func (l *Link) PutObject(ctx context.Context, r *nodev1.PutObjectRequest) (res *nodev1.PutObjectResponse, err error) {
	r.TrustDomain = l.p.TrustDomain.Name()
	err = l.call(ctx, "store an object", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.PutObject(ctx, r)
		return err
	})
	return res, err
}

// DeleteObject removes one; what PutObject says of a second attempt holds here.
func (l *Link) DeleteObject(ctx context.Context, r *nodev1.DeleteObjectRequest) (res *nodev1.DeleteObjectResponse, err error) {
	r.TrustDomain = l.p.TrustDomain.Name()
	err = l.call(ctx, "delete an object", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.DeleteObject(ctx, r)
		return err
	})
	return res, err
}

// ListObjects tells which there are.
func (l *Link) ListObjects(ctx context.Context, r *nodev1.ListObjectsRequest) (res *nodev1.ListObjectsResponse, err error) {
	r.TrustDomain = l.p.TrustDomain.Name()
	err = l.call(ctx, "list objects", func(ctx context.Context, c nodev1.NodeClient) error {
		res, err = c.ListObjects(ctx, r)
		return err
	})
	return res, err
}
