package grpcpropagation_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/propagation/grpcpropagation"
	"github.com/legation-io/legation/sdk/propagation/internal/fakeca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is one trust domain with both kinds of SVID.
type mesh struct {
	t    testing.TB
	x509 *pkitest.Domain
	jwt  *fakeca.CA
	keys jwtcheck.Static
}

func newMesh(t testing.TB) *mesh {
	m := &mesh{t: t, x509: pkitest.New(t, "example.org", nil), jwt: fakeca.New(t, "example.org")}
	m.keys = jwtcheck.Static{K: jwtcheck.NewKeys(m.jwt.Bundle(t))}
	return m
}

type signer struct{ *fakeca.Workload }

func (s signer) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (propagation.Token, error) {
	text, expires, err := s.Fetch(ctx, audience, ext)
	return propagation.Token{Text: text, ExpiresAt: expires, Plain: s.Plain}, err
}

func (m *mesh) config(name string) propagation.Config {
	return propagation.Config{
		Identity: identity.NewMemory(&identity.Snapshot{ID: m.jwt.ID(name)}),
		Keys:     m.keys, Tokens: signer{&fakeca.Workload{CA: m.jwt, ID: m.jwt.ID(name)}},
	}
}

// health is a service that says what it saw.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	saw    func(context.Context)
	onward func(context.Context) error
}

func (h *health) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	h.saw(ctx)
	if h.onward != nil {
		if err := h.onward(ctx); err != nil {
			return nil, err
		}
	}
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func (h *health) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	h.saw(stream.Context())
	return stream.Send(&grpc_health_v1.HealthCheckResponse{})
}

// serve starts a server and returns its address.
func serve(t testing.TB, h *health, options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(s, h)
	var running sync.WaitGroup
	running.Go(func() { s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		running.Wait()
	})
	return l.Addr().String()
}

func (m *mesh) server(name string, h *health) string {
	m.t.Helper()
	options, err := grpccreds.ServerOptions(mtls.ServerConfig{Source: m.x509.Source("/" + name), Authorize: mtls.AuthorizeMemberOf(m.jwt.Domain)})
	if err != nil {
		m.t.Fatal(err)
	}
	carry, err := grpcpropagation.ServerOptions(m.config(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return serve(m.t, h, append(options, carry...)...)
}

// client is one workload's connection to another.
func (m *mesh) client(name, to, address string, options ...grpc.DialOption) grpc_health_v1.HealthClient {
	m.t.Helper()
	creds, err := grpccreds.NewClient(mtls.ClientConfig{Source: m.x509.Source("/" + name), Authorize: mtls.AuthorizeID(m.jwt.ID(to))})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { creds.Close() })
	return dial(m.t, address, append(options, grpc.WithTransportCredentials(creds))...)
}

func dial(t testing.TB, address string, options ...grpc.DialOption) grpc_health_v1.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}

func (m *mesh) carrying(name, to string) []grpc.DialOption {
	m.t.Helper()
	options, err := grpcpropagation.DialOptions(m.config(name), grpcpropagation.ToWorkload(m.jwt.ID(to)))
	if err != nil {
		m.t.Fatal(err)
	}
	return options
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestTheChainGoesThroughGRPCOverMTLS(t *testing.T) {
	m := newMesh(t)
	seen := make(chan propagation.Chain, 2)
	db := m.server("db", &health{saw: func(ctx context.Context) { seen <- propagation.FromContext(ctx) }})
	next := m.client("orders", "db", db, m.carrying("orders", "db")...)
	orders := m.server("orders", &health{
		saw: func(context.Context) {},
		onward: func(ctx context.Context) error {
			if _, err := next.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
				return err
			}
			w, err := next.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			_, err = w.Recv()
			return err
		},
	})
	if _, err := m.client("shop", "orders", orders, m.carrying("shop", "orders")...).Check(within(t), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // by a unary call and by a stream
		if c := <-seen; c.String() != "spiffe://example.org/shop > spiffe://example.org/orders" {
			t.Error(c)
		}
	}
}

// TestA46MetadataOfAClientIsNotBelieved: over real mTLS, whatever a client
// writes, the handler sees its peer or nothing.
func TestA46MetadataOfAClientIsNotBelieved(t *testing.T) {
	m := newMesh(t)
	var saw metadata.MD
	db := m.server("db", &health{saw: func(ctx context.Context) { saw, _ = metadata.FromIncomingContext(ctx) }})
	stock := m.client("stock", "db", db)
	token, err := m.jwt.Sign(m.jwt.ID("stock"), []string{m.jwt.ID("db").String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := m.jwt.Sign(m.jwt.ID("admin"), []string{m.jwt.ID("db").String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const admin = "spiffe://example.org/admin"
	for name, tc := range map[string]struct {
		md   []string
		code codes.Code
	}{
		"nothing":                  {nil, codes.OK},
		"its own token":            {[]string{"x-workload-identity", "jwt:" + token}, codes.OK},
		"its own token twice":      {[]string{"x-workload-identity", "jwt:" + token, "X-Workload-Identity", "jwt:" + token}, codes.InvalidArgument},
		"its own token, no scheme": {[]string{"x-workload-identity", token}, codes.InvalidArgument},
		"somebody's token":         {[]string{"x-workload-identity", "jwt:" + stolen}, codes.Unauthenticated},
		"spiffe-id":                {[]string{"spiffe-id", admin, "workload-id", admin}, codes.OK},
		"spiffe-id twice":          {[]string{"spiffe-id", admin, "spiffe-id", admin}, codes.OK},
		"spiffe_id":                {[]string{"spiffe_id", admin, "workload_id", admin}, codes.OK},
		"spiffe-id-bin":            {[]string{"spiffe-id-bin", admin, "x-workload-identity-bin", admin}, codes.OK},
		"x-forwarded-client-cert":  {[]string{"x-forwarded-client-cert", "URI=" + admin}, codes.OK},
		"baggage that lies":        {[]string{"baggage", "workload.origin=spiffe:%2F%2Fexample.org%2Fadmin"}, codes.OK},
	} {
		saw = nil
		_, err := stock.Check(metadata.AppendToOutgoingContext(within(t), tc.md...), &grpc_health_v1.HealthCheckRequest{})
		if status.Code(err) != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
		if tc.code != codes.OK {
			if saw != nil {
				t.Errorf("%s: the handler ran", name)
			}
			continue
		}
		for key, values := range saw {
			if strings.Contains(strings.Join(values, " "), "admin") {
				t.Errorf("%s: the handler sees %s: %q", name, key, values)
			}
		}
		want := []string{"spiffe://example.org/stock"}
		if !slices.Equal(saw["spiffe-id"], want) || !slices.Equal(saw["workload-id"], want) {
			t.Errorf("%s: spiffe-id %q, workload-id %q", name, saw["spiffe-id"], saw["workload-id"])
		}
		if has := len(saw["x-workload-identity"]) == 1; has != (name == "its own token") {
			t.Errorf("%s: x-workload-identity %q", name, saw["x-workload-identity"])
		}
	}
}

func TestWithoutAVerifiedPeerACallIsRefused(t *testing.T) {
	m := newMesh(t)
	for mode, want := range map[propagation.Mode]codes.Code{propagation.Mesh: codes.Unauthenticated, propagation.Edge: codes.OK, propagation.Sidecar: codes.OK} {
		c := m.config("db")
		c.Mode = mode
		options, err := grpcpropagation.ServerOptions(c)
		if err != nil {
			t.Fatal(err)
		}
		var caller spiffeid.ID
		plain := dial(t, serve(t, &health{saw: func(ctx context.Context) { caller = propagation.FromContext(ctx).Caller() }}, options...), grpc.WithTransportCredentials(insecure.NewCredentials()))
		const stock = "spiffe://example.org/stock"
		ctx := metadata.AppendToOutgoingContext(within(t), "spiffe-id", stock, "workload-id", stock)
		if _, err := plain.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); status.Code(err) != want {
			t.Errorf("mode %d: %v, want %s", mode, err, want)
		}
		if (caller.String() == stock) != (mode == propagation.Sidecar) {
			t.Errorf("mode %d: the caller is %s", mode, caller)
		}
	}
}

func TestACallThatCannotBeVouchedForIsNotSent(t *testing.T) {
	m := newMesh(t)
	c := m.config("shop")
	down := &fakeca.Workload{CA: m.jwt, ID: m.jwt.ID("shop")}
	down.SetDown(true)
	c.Tokens = signer{down}
	options, err := grpcpropagation.DialOptions(c, grpcpropagation.ToWorkload(m.jwt.ID("db")))
	if err != nil {
		t.Fatal(err)
	}
	client := dial(t, "127.0.0.1:1", append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	_, err = client.Check(within(t), &grpc_health_v1.HealthCheckRequest{})
	var refused *propagation.Error
	if status.Code(err) != codes.Unavailable || !errors.As(err, &refused) || refused.Cause != propagation.NotReady {
		t.Errorf("%v", err)
	}
	if _, err := grpcpropagation.DialOptions(c, nil); err == nil {
		t.Error("without an audience")
	}
	options, err = grpcpropagation.DialOptions(c, func(context.Context, string, string) (spiffeid.ID, error) {
		return spiffeid.ID{}, errors.New("who is that")
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = dial(t, "127.0.0.1:1", append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...).Check(within(t), &grpc_health_v1.HealthCheckRequest{})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "who is that") {
		t.Errorf("%v", err)
	}
}

// A gRPC service behind its Envoy sidecar, which says who called; sdk/grpccreds
// says it where there is no sidecar.
func Example() {
	t := &example{}
	defer t.end()
	m := newMesh(t)

	options, err := grpcpropagation.ServerOptions(propagation.Config{
		Mode: propagation.Sidecar, Identity: identity.NewMemory(&identity.Snapshot{ID: m.jwt.ID("db")}), Keys: m.keys,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	address := serve(t, &health{saw: func(ctx context.Context) {
		fmt.Println("called by", propagation.FromContext(ctx).Caller())
	}}, options...)

	sidecar := dial(t, address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	ctx := metadata.AppendToOutgoingContext(context.Background(), "spiffe-id", "spiffe://example.org/shop", "workload-id", "spiffe://example.org/shop")
	if _, err := sidecar.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		fmt.Println(err)
	}
	// Output: called by spiffe://example.org/shop
}

// example is a testing.TB for an Example.
type example struct {
	testing.TB
	later []func()
}

func (e *example) Helper()           {}
func (e *example) Cleanup(f func())  { e.later = append(e.later, f) }
func (e *example) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
func (e *example) end() {
	for _, f := range slices.Backward(e.later) {
		f()
	}
}
