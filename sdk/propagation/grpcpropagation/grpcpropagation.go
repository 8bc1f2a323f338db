// Package grpcpropagation is package propagation for gRPC: it answers who
// called, and through whom, in the metadata of calls. The names and what they
// mean are those of the HTTP headers.
//
//	server := grpc.NewServer(options...) // of sdk/grpccreds
//	options, err := grpcpropagation.ServerOptions(config)
//	...
//	dial, err := grpcpropagation.DialOptions(config, grpcpropagation.ToWorkload(orders))
package grpcpropagation

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/propagation"
)

// ServerOptions are interceptors that verify who called before a handler
// runs. They come first: add them before interceptors that decide by the
// Chain. A refused call ends with InvalidArgument (what cannot be read),
// Unavailable (we are not ready) or Unauthenticated, and the reason; its error
// has a *propagation.Error in its chain. An error says what of the
// configuration is wrong.
//
// In mode propagation.Mesh the peer is that of sdk/grpccreds.
func ServerOptions(c propagation.Config) ([]grpc.ServerOption, error) {
	in, err := propagation.NewInbound(c)
	if err != nil {
		return nil, err
	}
	s := server{in}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}, nil
}

type server struct{ in *propagation.Inbound }

func (s server) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := s.accept(ctx)
	if err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (s server) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := s.accept(stream.Context())
	if err != nil {
		return err
	}
	return handler(srv, &withContext{stream, ctx})
}

type withContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *withContext) Context() context.Context { return s.ctx }

// accept returns the context that a handler gets.
func (s server) accept(ctx context.Context) (context.Context, error) {
	md, _ := metadata.FromIncomingContext(ctx) // a copy
	r := propagation.Received{Tokens: md[propagation.HeaderWorkloadIdentity]}
	switch s.in.Mode() {
	case propagation.Mesh:
		p, ok := identity.PeerFromContext(ctx)
		if !ok {
			p, _ = grpccreds.PeerFromContext(ctx)
		}
		r.Peer = p
	case propagation.Sidecar:
		r.SPIFFEID, r.WorkloadID = md[propagation.HeaderSPIFFEID], md[propagation.HeaderWorkloadID]
		if p, ok := peer.FromContext(ctx); ok {
			r.Local, r.Remote = p.LocalAddr, p.Addr
		}
	}
	chain, err := s.in.Accept(r)
	if err != nil {
		s.in.Refused(ctx, err)
		return nil, asStatus(err, codes.Unauthenticated)
	}
	if md == nil {
		md = metadata.MD{}
	}
	propagation.Strip(md)
	if !chain.IsZero() {
		id := []string{chain.Caller().String()}
		md[propagation.HeaderSPIFFEID], md[propagation.HeaderWorkloadID] = id, id
		if len(r.Tokens) == 1 {
			md[propagation.HeaderWorkloadIdentity] = r.Tokens
		}
	}
	if baggage := s.in.Baggage(md[propagation.HeaderBaggage], chain); len(baggage) > 0 {
		md[propagation.HeaderBaggage] = baggage
	} else {
		delete(md, propagation.HeaderBaggage)
	}
	return propagation.NewContext(metadata.NewIncomingContext(ctx, md), chain), nil
}

// Audience says which workload a call goes to: the SPIFFE ID that its server
// presents. target is the connection's, method "/package.Service/Method". The
// zero ID is for servers outside.
type Audience func(ctx context.Context, target, method string) (spiffeid.ID, error)

// ToWorkload is an Audience for a connection to one service.
func ToWorkload(id spiffeid.ID) Audience {
	return func(context.Context, string, string) (spiffeid.ID, error) { return id, nil }
}

// DialOptions are interceptors that add our token to each call, after those of
// the chain that the call's context has. They come last: what interceptors
// after them set under these names is not removed. Calls fail with
// Unavailable (no token can be had) or FailedPrecondition (the chain cannot be
// passed on), and a *propagation.Error in their chain, before anything is
// sent. Of the configuration, Audience is not used.
func DialOptions(c propagation.Config, to Audience) ([]grpc.DialOption, error) {
	if to == nil {
		return nil, errors.New("grpcpropagation: no Audience: a token is for one workload, and nobody says which; see ToWorkload")
	}
	out, err := propagation.NewOutbound(c)
	if err != nil {
		return nil, err
	}
	k := client{out, to}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(k.unary), grpc.WithChainStreamInterceptor(k.stream)}, nil
}

type client struct {
	out *propagation.Outbound
	to  Audience
}

func (c client) unary(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, err := c.attach(ctx, conn.Target(), method)
	if err != nil {
		return err
	}
	return invoke(ctx, method, request, reply, conn, opts...)
}

func (c client) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, err := c.attach(ctx, conn.Target(), method)
	if err != nil {
		return nil, err
	}
	return open(ctx, desc, conn, method, opts...)
}

func (c client) attach(ctx context.Context, target, method string) (context.Context, error) {
	audience, err := c.to(ctx, target, method)
	header := ""
	if err == nil && !audience.IsZero() {
		header, err = c.out.Header(ctx, audience)
	}
	if err != nil {
		return nil, asStatus(err, codes.FailedPrecondition)
	}
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	propagation.Strip(md)
	if header != "" {
		md[propagation.HeaderWorkloadIdentity] = []string{header}
	}
	if baggage := c.out.Baggage(ctx, md[propagation.HeaderBaggage], header != ""); baggage != "" {
		md[propagation.HeaderBaggage] = []string{baggage}
	} else {
		delete(md, propagation.HeaderBaggage)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// statusError is an error with a code, whose cause can still be asked for.
type statusError struct {
	*status.Status
	err error
}

func (e *statusError) Error() string              { return e.Err().Error() }
func (e *statusError) Unwrap() error              { return e.err }
func (e *statusError) GRPCStatus() *status.Status { return e.Status }

// asStatus gives an error a code: otherwise where its cause has none.
func asStatus(err error, otherwise codes.Code) error {
	var refused *propagation.Error
	if !errors.As(err, &refused) {
		if _, has := status.FromError(err); has {
			return err
		}
		return &statusError{status.New(otherwise, err.Error()), err}
	}
	switch refused.Cause {
	case propagation.Malformed, propagation.TooLarge, propagation.TooDeep:
		otherwise = codes.InvalidArgument
	case propagation.NotReady:
		otherwise = codes.Unavailable
	}
	return &statusError{status.New(otherwise, err.Error()), err}
}
