package grpcpolicy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/policy/grpcpolicy"
)

func rules(s string) policy.Policy {
	return policy.Policy{Name: "p", Version: "1", Modules: map[string]string{"p.rego": "package legation\n" + s}}
}

func newEngine(t testing.TB, s string) *policy.Engine {
	t.Helper()
	e, err := policy.New(context.Background(), policy.Config{Logger: slog.New(slog.DiscardHandler)}, rules(s))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var table = []grpcpolicy.Method{
	{FullMethod: "/grpc.health.v1.Health/Check", Operation: "health", Type: "service"},
	{FullMethod: "/grpc.health.v1.Health/Watch", Operation: "watch"},
}

func with(id string) context.Context {
	return identity.ContextWithPeer(context.Background(), identity.Peer{ID: spiffeid.RequireFromString(id)})
}

func TestUnaryCallsAreDecided(t *testing.T) {
	e := newEngine(t, `allow if { input.identity.namespace == "shop"; input.operation == "health"; input.resource.type == "service"; input.request.headers["x-tenant"][0] == "a" }`)
	i, err := grpcpolicy.New(grpcpolicy.Config{Engine: e, Methods: table, Metadata: []string{"x-tenant"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, id, method, tenant string
		want                     codes.Code
	}{
		{"what the policy allows", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/Check", "a", codes.OK},
		{"another caller", "spiffe://a.example/ns/other/sa/web", "/grpc.health.v1.Health/Check", "a", codes.PermissionDenied},
		{"other metadata", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/Check", "b", codes.PermissionDenied},
		{"another operation", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/Watch", "a", codes.PermissionDenied},
		{"a method that the table lacks", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/List", "a", codes.PermissionDenied},
		{"no peer", "", "/grpc.health.v1.Health/Check", "a", codes.PermissionDenied},
		// A38: CVE-2026-33186 and its kin.
		{"a method without its slash", "spiffe://a.example/ns/shop/sa/web", "grpc.health.v1.Health/Check", "a", codes.PermissionDenied},
		{"a method with two slashes", "spiffe://a.example/ns/shop/sa/web", "//grpc.health.v1.Health/Check", "a", codes.PermissionDenied},
		{"an encoded method", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/%43heck", "a", codes.PermissionDenied},
		{"a method with a third part", "spiffe://a.example/ns/shop/sa/web", "/grpc.health.v1.Health/Check/x", "a", codes.PermissionDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			if tt.id != "" {
				ctx = with(tt.id)
			}
			ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("x-tenant", tt.tenant))
			called := false
			_, err := i.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: tt.method}, func(ctx context.Context, _ any) (any, error) {
				called = true
				if d, ok := policy.DecisionFromContext(ctx); !ok || !d.Allowed {
					t.Error("the context has no decision")
				}
				return nil, nil
			})
			if status.Code(err) != tt.want || called != (tt.want == codes.OK) {
				t.Errorf("%v, called %v; want %s", err, called, tt.want)
			}
			if err != nil && status.Convert(err).Message() != "permission denied" {
				t.Errorf("the peer is told more than no: %v", err)
			}
		})
	}
}

func TestAMethodThatTheTableLacksIsNotRecorded(t *testing.T) {
	var got policy.Record
	e, err := policy.New(t.Context(), policy.Config{Logger: slog.New(slog.DiscardHandler), OnDecision: func(_ context.Context, r policy.Record) { got = r }}, rules("allow := true"))
	if err != nil {
		t.Fatal(err)
	}
	i, err := grpcpolicy.New(grpcpolicy.Config{Engine: e, Methods: table})
	if err != nil {
		t.Fatal(err)
	}
	for method, want := range map[string]string{
		"/grpc.health.v1.Health/Check": "/grpc.health.v1.Health/Check", "/secret.Service/Method": "", "secret": "",
		"/secret.Service/" + strings.Repeat("x", policy.MaxPathBytes): "",
	} {
		_, _ = i.Unary(with("spiffe://a.example/x"), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, nil })
		if got.Cause == "" || got.Route != want {
			t.Errorf("%.40s: %s, recorded as %.40q", method, got.Cause, got.Route)
		}
		got = policy.Record{}
	}
}

func TestAWholeServiceCanBeNamed(t *testing.T) {
	i, err := grpcpolicy.New(grpcpolicy.Config{Engine: newEngine(t, `allow if input.operation == "any"`),
		Methods: append([]grpcpolicy.Method{{FullMethod: "/grpc.health.v1.Health/*", Operation: "any"}}, table...)})
	if err != nil {
		t.Fatal(err)
	}
	for method, want := range map[string]codes.Code{"/grpc.health.v1.Health/List": codes.OK, "/grpc.health.v1.Health/Check": codes.PermissionDenied, "/other.Health/List": codes.PermissionDenied} {
		_, err := i.Unary(with("spiffe://a.example/x"), nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return nil, nil })
		if status.Code(err) != want {
			t.Errorf("%s: %v; want %s", method, err, want)
		}
	}
}

func TestTablesThatCannotBeMeantAreRefused(t *testing.T) {
	e := newEngine(t, "allow := true")
	for name, c := range map[string]grpcpolicy.Config{
		"no engine":                {Methods: table},
		"no slash":                 {Engine: e, Methods: []grpcpolicy.Method{{FullMethod: "a.B/C", Operation: "x"}}},
		"no method":                {Engine: e, Methods: []grpcpolicy.Method{{FullMethod: "/a.B", Operation: "x"}}},
		"no operation":             {Engine: e, Methods: []grpcpolicy.Method{{FullMethod: "/a.B/C"}}},
		"twice":                    {Engine: e, Methods: append(table[:1:1], table[0])},
		"metadata with a secret":   {Engine: e, Metadata: []string{"authorization"}},
		"metadata that is no name": {Engine: e, Metadata: []string{"a b"}},
	} {
		if _, err := grpcpolicy.New(c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestAStreamIsDecidedAgainWhenPoliciesChange(t *testing.T) {
	e := newEngine(t, `allow if input.operation == "watch"`)
	i, err := grpcpolicy.New(grpcpolicy.Config{Engine: e, Methods: []grpcpolicy.Method{{FullMethod: "/test.Echo/Chat", Operation: "watch"}}})
	if err != nil {
		t.Fatal(err)
	}
	asPeer := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		return h(srv, &stream{ss, identity.ContextWithPeer(ss.Context(), identity.Peer{ID: spiffeid.RequireFromString("spiffe://a.example/x")})})
	}
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.ChainStreamInterceptor(asPeer, i.Stream))
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			for {
				m := new(healthv1.HealthCheckRequest)
				if err := ss.RecvMsg(m); err != nil {
					if ss.RecvMsg(m) == nil {
						t.Error("a handler that reads on is told what comes after the denial")
					}
					return err
				}
				if err := ss.SendMsg(m); err != nil {
					return err
				}
			}
		}}}}, nil)
	healthv1.RegisterHealthServer(server, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() { server.Stop(); <-done }()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	say := func() error {
		if err := s.SendMsg(&healthv1.HealthCheckRequest{Service: "x"}); err != nil {
			return err
		}
		return s.RecvMsg(new(healthv1.HealthCheckRequest))
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	if err := e.Set(ctx, "test", rules(`allow if input.operation in {"watch", "other"}`)); err != nil {
		t.Fatal(err)
	}
	if err := say(); err != nil {
		t.Errorf("a stream that the new policy allows was ended: %v", err)
	}
	if err := e.Set(ctx, "test", rules(`allow if input.operation == "other"`)); err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&healthv1.HealthCheckRequest{Service: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := say(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream that the new policy denies goes on: %v", err)
	}
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *stream) Context() context.Context { return s.ctx }

func TestOnlyVerifyingCredentialsNameThePeer(t *testing.T) {
	i, err := grpcpolicy.New(grpcpolicy.Config{Engine: newEngine(t, "allow := true"), Methods: table})
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://a.example/x")
	leaf := &x509.Certificate{URIs: []*url.URL{id.URL()}}
	stranger := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
	for _, tt := range []struct {
		name string
		info credentials.AuthInfo
		want codes.Code
	}{
		{"those of sdk/grpccreds do", &grpccreds.AuthInfo{Peer: identity.Peer{ID: id}}, codes.OK},
		{"a TLS connection that nobody verified does not", credentials.TLSInfo{State: stranger}, codes.PermissionDenied},
		{"no credentials do not", nil, codes.PermissionDenied},
	} {
		ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: tt.info})
		_, err := i.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/grpc.health.v1.Health/Check"}, func(context.Context, any) (any, error) { return nil, nil })
		if status.Code(err) != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
