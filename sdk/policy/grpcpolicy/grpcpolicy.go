// Package grpcpolicy binds sdk/policy to each call of a gRPC server. It
// answers "what does this full method mean" by a table, takes the peer from
// the connection, and leaves the decision to the policy.Engine. It is a
// package of its own so that users of HTTP do not link gRPC.
package grpcpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/policy"
)

// A Method says what one full method means to a policy.
type Method struct {
	// FullMethod is /package.Service/Method, or /package.Service/* for those
	// of a service that have no line of their own.
	FullMethod string
	// Operation becomes input.operation; required.
	Operation string
	// Type and Name become input.resource.
	Type, Name string
}

// Config is how the interceptors ask.
type Config struct {
	// Engine decides; required.
	Engine *policy.Engine
	// Methods that may be asked about; all others are denied.
	Methods []Method
	// Metadata lists the keys that become input.request.headers; none by
	// default. Those that carry secrets are refused.
	Metadata []string
}

// Interceptors bind a policy to a server. A call that is denied ends with
// PermissionDenied and no detail; the log has the reason under the decision's
// id.
type Interceptors struct {
	engine  *policy.Engine
	methods map[string]Method
	keys    []string
}

// New checks the table.
func New(c Config) (*Interceptors, error) {
	if c.Engine == nil {
		return nil, fmt.Errorf("grpcpolicy: Config.Engine is missing")
	}
	i := &Interceptors{engine: c.Engine, methods: make(map[string]Method, len(c.Methods))}
	for _, m := range c.Methods {
		if err := policy.CheckFullMethod(m.FullMethod); err != nil {
			return nil, fmt.Errorf("grpcpolicy: method %q: %w", m.FullMethod, err)
		}
		if m.Operation == "" {
			return nil, fmt.Errorf("grpcpolicy: method %q names no operation", m.FullMethod)
		}
		if _, ok := i.methods[m.FullMethod]; ok {
			return nil, fmt.Errorf("grpcpolicy: method %q is given twice", m.FullMethod)
		}
		i.methods[m.FullMethod] = m
	}
	var err error
	if i.keys, err = policy.HeaderNames(c.Metadata); err != nil {
		return nil, fmt.Errorf("grpcpolicy: %w", err)
	}
	return i, nil
}

// Unary decides once per call.
func (i *Interceptors) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	d := i.decide(ctx, info.FullMethod)
	if !d.Allowed {
		return nil, errDenied
	}
	return handler(policy.ContextWithDecision(ctx, d), req)
}

// Stream decides when a stream begins, and again at the next message received
// after other policies came into force; a stream that would no longer be let
// in ends with PermissionDenied.
func (i *Interceptors) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	_, changed := i.engine.Loaded()
	d := i.decide(stream.Context(), info.FullMethod)
	if !d.Allowed {
		return errDenied
	}
	return handler(srv, &decided{ServerStream: stream, ctx: policy.ContextWithDecision(stream.Context(), d),
		interceptors: i, method: info.FullMethod, changed: changed})
}

var errDenied = status.Error(codes.PermissionDenied, "permission denied")

// decided is a stream that was let in.
type decided struct {
	grpc.ServerStream
	ctx          context.Context
	interceptors *Interceptors
	method       string

	// RecvMsg's, which is not called by two at once.
	changed <-chan struct{}
	denied  bool // for good, though the handler may read on
}

// Context has the decision.
func (s *decided) Context() context.Context { return s.ctx }

// RecvMsg decides again where policies changed.
func (s *decided) RecvMsg(m any) error {
	if s.denied {
		return errDenied
	}
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	select {
	case <-s.changed:
		_, s.changed = s.interceptors.engine.Loaded()
		if d := s.interceptors.decide(s.ServerStream.Context(), s.method); !d.Allowed {
			s.denied = true
			return errDenied
		}
	default:
	}
	return nil
}

func (i *Interceptors) decide(ctx context.Context, method string) policy.Decision {
	in, err := i.input(ctx, method)
	var d policy.Decision
	if err != nil {
		d = i.engine.Refuse(err)
	} else {
		d = i.engine.Decide(ctx, &in)
	}
	r := policy.Record{Decision: d, Identity: in.Identity, Operation: in.Operation, Type: in.Resource.Type, Name: in.Resource.Name,
		Method: in.Request.Method}
	if err == nil {
		r.Route = method // it is one of the table's, or of a service of it
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		r.Remote = p.Addr.String()
	}
	i.engine.Record(ctx, r)
	return d
}

func (i *Interceptors) input(ctx context.Context, method string) (policy.Input, error) {
	in := policy.Input{Identity: peerID(ctx), Request: policy.Request{Method: "POST"}}
	// grpc-go hands on the path as it came; a rule about /a.B/C must not miss
	// a call that came as a.B/C (CVE-2026-33186).
	if err := policy.CheckFullMethod(method); err != nil {
		return in, err
	}
	m, ok := i.methods[method]
	if !ok {
		m, ok = i.methods[method[:strings.LastIndexByte(method, '/')]+"/*"]
	}
	if !ok {
		return in, &policy.Refusal{Cause: policy.CauseNoRoute, Detail: "no line of the table names this method"}
	}
	in.Operation, in.Resource, in.Request.Path = m.Operation, policy.Resource{Type: m.Type, Name: m.Name}, method
	if len(i.keys) > 0 {
		md, _ := metadata.FromIncomingContext(ctx)
		for _, k := range i.keys {
			if values := md[k]; len(values) > 0 {
				in.Request.Headers = append(in.Request.Headers, policy.Header{Name: k, Values: slices.Clone(values)})
			}
		}
	}
	return in, nil
}

// peerID is the verified peer: what the interceptors of sdk/grpccreds put into
// the context, or else what its credentials know of the connection. Other
// credentials prove nothing here: zero, and then everything is denied.
func peerID(ctx context.Context) (id spiffeid.ID) {
	if p, ok := identity.PeerFromContext(ctx); ok {
		return p.ID
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*grpccreds.AuthInfo); ok {
			return info.Peer.ID
		}
	}
	return id
}
