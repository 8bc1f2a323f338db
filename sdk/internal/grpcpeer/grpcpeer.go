// Package grpcpeer lets sdk/identity find the caller of a gRPC call in its
// context without linking gRPC: sdk/grpccreds knows how, when it is in the
// program.
package grpcpeer

import (
	"context"
	"sync/atomic"
)

var find atomic.Pointer[func(context.Context) any]

// Register sets how. f returns an *identity.Peer, or nil.
func Register(f func(context.Context) any) { find.Store(&f) }

// Find returns what f does; nil without one.
func Find(ctx context.Context) any {
	f := find.Load()
	if f == nil {
		return nil
	}
	return (*f)(ctx)
}
