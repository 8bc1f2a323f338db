package callers

import (
	"context"

	"google.golang.org/grpc"

	"github.com/legation-io/legation/internal/fault"
)

// Classify tells who calls. A caller it cannot place is Unspecified, which no
// row admits; an error ends the call and is mapped by its fault kind.
type Classify func(ctx context.Context) (Identity, error)

// Refused is told of every refused call, for the audit trail and a counter.
// It must not block.
type Refused func(ctx context.Context, fullMethod string, i Identity, err error)

// Interceptors returns the gate of a gRPC server. Install it first in both
// chains; refused may be nil.
func (m *Matrix) Interceptors(classify Classify, refused Refused) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	admit := func(ctx context.Context, fullMethod string) (context.Context, error) {
		i, err := classify(ctx)
		if err == nil {
			err = m.Check(fullMethod, i)
		}
		if err != nil {
			if refused != nil {
				refused(ctx, fullMethod, i, err)
			}
			return nil, fault.GRPC(err)
		}
		return NewContext(ctx, i), nil
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
	stream := func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := admit(s.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(srv, identified{s, ctx})
	}
	return unary, stream
}

type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (i identified) Context() context.Context { return i.ctx }
