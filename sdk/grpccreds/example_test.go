package grpccreds_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/legation-io/legation/sdk/grpccreds"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

// A service and its client. Programs take their Source from sdk/workloadapi.
func Example() {
	ca := pkitest.Example("example.org")
	domain := spiffeid.RequireTrustDomainFromString("example.org")
	server, client := ca.Source("/ns/ml/sa/model"), ca.Source("/ns/shop/sa/web")

	serverCreds, err := grpccreds.NewServer(mtls.ServerConfig{Source: server, Authorize: mtls.AuthorizePath(domain, "/ns/shop/sa/*")})
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(serverCreds), grpc.ChainUnaryInterceptor(
		func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			caller, _ := identity.PeerFromContext(ctx)
			fmt.Println("called by", caller.ID)
			return handler(ctx, request)
		}))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go s.Serve(l)
	defer s.Stop()

	creds, err := grpccreds.NewClient(mtls.ClientConfig{Source: client, Authorize: mtls.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/ns/ml/sa/model"))})
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(answer.GetStatus(), err)
	// Output:
	// called by spiffe://example.org/ns/shop/sa/web
	// SERVING <nil>
}
