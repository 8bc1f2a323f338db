package grpccreds_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // connections are closed here all the time
	goleak.VerifyTestMain(m)
}

const (
	web      = "/ns/shop/sa/web"
	model    = "/ns/ml/sa/model-a"
	patience = time.Minute
)

// who answers with the caller's SPIFFE ID, once per message.
var who = grpc.ServiceDesc{
	ServiceName: "test.Who", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Ask", Handler: func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		in := new(emptypb.Empty)
		if err := decode(in); err != nil {
			return nil, err
		}
		answer := func(ctx context.Context, _ any) (any, error) {
			p, _ := identity.PeerFromContext(ctx)
			return wrapperspb.String(p.ID.String()), nil
		}
		if interceptor == nil {
			return answer(ctx, in)
		}
		return interceptor(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Who/Ask"}, answer)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			if err := s.RecvMsg(new(emptypb.Empty)); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			p, _ := identity.PeerFromContext(s.Context())
			if err := s.SendMsg(wrapperspb.String(p.ID.String())); err != nil {
				return err
			}
		}
	}}},
}

func serve(t testing.TB, options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(options...)
	s.RegisterService(&who, nil)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func options(t testing.TB, config mtls.ServerConfig) []grpc.ServerOption {
	t.Helper()
	o, err := grpccreds.ServerOptions(config)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func connect(t testing.TB, address string, config mtls.ClientConfig) *grpc.ClientConn {
	t.Helper()
	creds, err := grpccreds.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); creds.Close() })
	return conn
}

func ask(t testing.TB, conn *grpc.ClientConn, o ...grpc.CallOption) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out wrapperspb.StringValue
	err := conn.Invoke(ctx, "/test.Who/Ask", &emptypb.Empty{}, &out, o...)
	return out.Value, err
}

func TestBothEndsKnowEachOther(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, options(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeID(d.ID(web))})...)
	conn := connect(t, address, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))})
	var server peer.Peer
	got, err := ask(t, conn, grpc.Peer(&server))
	if err != nil || got != d.ID(web).String() {
		t.Fatalf("the server calls us %q, %v", got, err)
	}
	info, ok := server.AuthInfo.(*grpccreds.AuthInfo)
	if !ok || info.Peer.ID != d.ID(model) || info.SecurityLevel != credentials.PrivacyAndIntegrity || info.AuthType() != "tls" || info.State.NegotiatedProtocol != "h2" {
		t.Errorf("the client's AuthInfo is %+v", server.AuthInfo)
	}
	if p, ok := grpccreds.PeerFromContext(peer.NewContext(context.Background(), &server)); !ok || p.ID != d.ID(model) {
		t.Errorf("PeerFromContext: %v", p.ID)
	}
	stream, err := conn.NewStream(t.Context(), &who.Streams[0], "/test.Who/Stream")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var out wrapperspb.StringValue
		if err := errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.RecvMsg(&out)); err != nil || out.Value != d.ID(web).String() {
			t.Fatalf("the stream calls us %q, %v", out.Value, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		t.Error(err)
	}
}

func TestA42AServerOrClientThatIsAnotherIsRefused(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, options(t, mtls.ServerConfig{Source: d.Source("/ns/ml/sa/model-b"), Authorize: mtls.AuthorizeID(d.ID(web))})...)
	host, _, _ := net.SplitHostPort(address)
	for _, tt := range []struct {
		name string
		who  string
		a    mtls.Authorizer
		want string
	}{
		{"the server, by ID", web, mtls.AuthorizeID(d.ID(model)), "wrong_name"},
		{"the server, by host", web, mtls.AuthorizeHosts(map[string][]spiffeid.ID{host: {d.ID(model)}}), "wrong_name"},
		{"a host that is not named", web, mtls.AuthorizeHosts(map[string][]spiffeid.ID{"model.test": {d.ID(model)}}), "misconfigured"},
		{"the client", "/ns/shop/sa/other", mtls.AuthorizeID(d.ID("/ns/ml/sa/model-b")), "(rejected)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ask(t, connect(t, address, mtls.ClientConfig{Source: d.Source(tt.who), Authorize: tt.a}))
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want %s, got %v", tt.want, err)
			}
		})
	}
}

func TestA36GRPCWithoutItsProtocolOrWithoutTLSIsRefused(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	var mu sync.Mutex
	var causes []handshake.Cause
	address := serve(t, options(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain), Hooks: []handshake.Hook{
		func(_ context.Context, e *handshake.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Err != nil {
				causes = append(causes, e.Err.Cause)
			}
		}}})...)
	says := func(want handshake.Cause) {
		t.Helper()
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			mu.Lock()
			if len(causes) > 0 {
				if causes[0] != want {
					t.Errorf("want %s, the server says %v", want, causes)
				}
				causes = nil
				mu.Unlock()
				return
			}
			mu.Unlock()
		}
		t.Errorf("the server never said %s", want)
	}
	cert := d.Issue(web, nil)
	for _, protos := range [][]string{nil, {"http/1.1"}} {
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}, NextProtos: protos})
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("protocols %q: served", protos)
			}
			c.Close()
		}
		says(handshake.ALPN)
	}
	plain, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, plain); err == nil {
		t.Errorf("plaintext is answered %q", got)
	}
	plain.Close()
	says(handshake.NotTLS)

	// A server that has no h2.
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*d.Issue(model, nil)}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() { defer c.Close(); io.Copy(io.Discard, c) })
		}
	})
	defer done.Wait()
	defer l.Close()
	_, err = ask(t, connect(t, l.Addr().String(), mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)}))
	if err == nil || !strings.Contains(err.Error(), "(alpn)") {
		t.Errorf("a server without h2: %v", err)
	}
}

func TestACallOnOtherCredentialsHasNoPeer(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	// The interceptors, on credentials that ask for a certificate and verify
	// nothing.
	careless := credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*d.Issue(model, nil)}, ClientAuth: tls.RequireAnyClientCert})
	address := serve(t, grpc.Creds(careless), grpc.UnaryInterceptor(grpccreds.UnaryServerInterceptor), grpc.StreamInterceptor(grpccreds.StreamServerInterceptor))
	conn := connect(t, address, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))})
	if _, err := ask(t, conn); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a call: %v", err)
	}
	stream, err := conn.NewStream(t.Context(), &who.Streams[0], "/test.Who/Stream")
	if err == nil {
		err = stream.RecvMsg(new(wrapperspb.StringValue))
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stream: %v", err)
	}
}

func TestRotationNeedsNothing(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	server, client := d.Source(model), d.Source(web)
	address := serve(t, options(t, mtls.ServerConfig{Source: server, Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})...)
	config := mtls.ClientConfig{Source: client, Authorize: mtls.AuthorizeID(d.ID(model))}
	old := connect(t, address, config)
	for round := range 3 {
		// A call that is under way when its connection ends fails once.
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			_, err := ask(t, old)
			if err == nil {
				break
			}
			if status.Code(err) != codes.Unavailable || time.Now().After(end) {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		d.RotateRoot(false) // both roots are believed
		server.Set(d.Snapshot(model))
		client.Set(d.Snapshot(web))
		conn := connect(t, address, config)
		var p peer.Peer
		if _, err := ask(t, conn, grpc.Peer(&p)); err != nil {
			t.Fatalf("round %d, a new connection: %v", round, err)
		}
		now, _, _ := server.Current()
		if info := p.AuthInfo.(*grpccreds.AuthInfo); !info.Peer.Certificate.Equal(now.Certificate.Leaf) {
			t.Errorf("round %d: an old certificate is presented", round)
		}
		if _, err := ask(t, old); err != nil {
			t.Fatalf("round %d, the open connection: %v", round, err)
		}
		d.RetireOldRoots() // ends the old connection, and gRPC makes another
	}
}

func TestA35ARevokedCallersStreamEnds(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, options(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})...)
	open := func(path string) (*grpc.ClientConn, grpc.ClientStream) {
		conn := connect(t, address, mtls.ClientConfig{Source: identity.NewMemory(d.Snapshot(path)), Authorize: mtls.AuthorizeID(d.ID(model))})
		stream, err := conn.NewStream(t.Context(), &who.Streams[0], "/test.Who/Stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.RecvMsg(new(wrapperspb.StringValue))); err != nil {
			t.Fatal(err)
		}
		return conn, stream
	}
	conn, bad := open(web)
	_, good := open("/ns/shop/sa/other")
	start := time.Now()
	d.Deny(chaincheck.Denial{ID: d.ID(web), Reason: "stolen", At: time.Now()})
	if err := bad.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	t.Logf("ended %s after the change", time.Since(start))
	if _, err := ask(t, conn); err == nil {
		t.Error("the revoked calls again")
	}
	if err := errors.Join(good.SendMsg(&emptypb.Empty{}), good.RecvMsg(new(wrapperspb.StringValue))); err != nil {
		t.Errorf("a bystander's stream: %v", err)
	}
}

func TestCredentialsOfOneSideAreNoneOfTheOther(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	s, err := grpccreds.NewServer(mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := grpccreds.NewClient(mtls.ClientConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer b.Close()
	if _, _, err := s.ClientHandshake(t.Context(), "x", a); err == nil {
		t.Error("a server's credentials dial")
	}
	if _, _, err := c.ServerHandshake(a); err == nil {
		t.Error("a client's credentials accept")
	}
	if c.OverrideServerName("x") == nil || s.OverrideServerName("x") != nil || s.Clone() == nil || c.Clone() == nil || s.Info().SecurityProtocol != "tls" || c.Info().SecurityProtocol != "tls" {
		t.Error("the rest of the interface")
	}
	for _, config := range []mtls.ServerConfig{{}, {Source: d.Source(model)}} {
		if _, err := grpccreds.ServerOptions(config); err == nil {
			t.Error("a server without an authoriser")
		}
	}
	if _, err := grpccreds.NewClient(mtls.ClientConfig{}); err == nil {
		t.Error("a client without an authoriser")
	}
}
