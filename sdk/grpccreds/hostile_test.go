package grpccreds_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

// A connection is authorised for the host it was made for. A call that says
// it is for another is not sent on it.
func TestA42ACallForAnotherHostDoesNotUseTheConnection(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, options(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})...)
	creds, err := grpccreds.NewClient(mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{
		"a.test": {d.ID(model)}, "b.test": {d.ID("/b")},
	})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { creds.Close() })
	to := func(target string) *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	a := to("a.test:443")
	if _, err := ask(t, a); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"b.test", "b.test:443", "c.test"} {
		if _, err := ask(t, a, grpc.CallAuthority(other)); status.Code(err) != codes.Unavailable {
			t.Errorf("a call for %s on the connection of a.test: %v", other, err)
		}
	}
	if _, err := ask(t, to("b.test:443")); err == nil {
		t.Error("the server of a.test passes for b.test")
	}
	if _, err := ask(t, a); err != nil {
		t.Error(err)
	}
	if err := creds.OverrideServerName("b.test"); err == nil {
		t.Error("the name that is authorised can be changed afterwards")
	}
}

// An interceptor that is called without a connection, or with what is not one
// of ours, lets nobody in.
func TestInterceptorsWithoutAConnectionRefuse(t *testing.T) {
	_, err := grpccreds.UnaryServerInterceptor(t.Context(), nil, nil, func(context.Context, any) (any, error) { return nil, errors.New("reached") })
	if status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}
