package workloadapi_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// A service opens its source once and gives it to sdk/mtls or sdk/grpccreds.
func ExampleOpen() {
	api, stop := fakeapi.Example("spiffe://example.org/ns/ml/sa/model")
	defer stop()
	os.Setenv("SPIFFE_ENDPOINT_SOCKET", api) // the agent's is unix:///run/legation/agent.sock

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	source, err := workloadapi.Open(ctx, workloadapi.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	snapshot, changed, err := source.Current()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(snapshot.ID)
	select {
	case <-changed: // a renewed certificate, a new CRL, a revocation
	default:
	}
	state, _, _ := source.State()
	fmt.Println(state)
	// Output:
	// spiffe://example.org/ns/ml/sa/model
	// current
}

// Run instead of Open, where a program runs its parts in an errgroup.
func ExampleSource_Run() {
	api, stop := fakeapi.Example("spiffe://example.org/web")
	defer stop()

	source, err := workloadapi.NewSource(workloadapi.Config{Addr: api, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	_, changed, err := source.Current()
	fmt.Println(err != nil)

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	<-changed
	for { // Current's errors are states on the way, not ends
		snapshot, changed, err := source.Current()
		if err == nil {
			fmt.Println(snapshot.ID)
			break
		}
		<-changed
	}
	cancel()
	fmt.Println(<-done)
	// Output:
	// true
	// spiffe://example.org/web
	// <nil>
}

// A token for one call to one audience.
func ExampleClient_FetchJWTSVID() {
	api, stop := fakeapi.Example("spiffe://example.org/web")
	defer stop()

	client, err := workloadapi.NewClient(api)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, err = client.FetchJWTSVID(context.Background(), jwtsvid.Params{Audience: "spiffe://example.org/db"})
	fmt.Println(status.Code(err)) // this example's agent signs no tokens
	// Output:
	// PermissionDenied
}

// A further service of the agent's socket.
func ExampleDial() {
	api, stop := fakeapi.Example("spiffe://example.org/web")
	defer stop()

	conn, err := workloadapi.Dial(api)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	_, err = workloadv1.NewObjectsClient(conn).Get(context.Background(), &workloadv1.GetObjectRequest{Key: "a"})
	fmt.Println(status.Code(err) == codes.Unimplemented) // another implementation's socket
	// Output:
	// true
}
