package light_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/light"
)

// A function that lives for one request: one round trip, and nothing stays.
func ExampleFetch() {
	addr, stop := fakeapi.Example("spiffe://example.org/ns/edge/sa/resize")
	defer stop()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	snapshot, err := light.Fetch(ctx, light.Config{Addr: addr}) // empty takes SPIFFE_ENDPOINT_SOCKET
	if err != nil {
		log.Fatal(err)
	}
	// snapshot.Certificate is a *tls.Certificate; a Source of it alone:
	source := identity.NewMemory(snapshot)
	_, _, err = source.Current()
	fmt.Println(snapshot.ID, err)
	// Output:
	// spiffe://example.org/ns/edge/sa/resize <nil>
}

// A small service: renewed as long as it runs.
func ExampleOpen() {
	addr, stop := fakeapi.Example("spiffe://example.org/ns/edge/sa/sensor")
	defer stop()

	source, err := light.Open(context.Background(), light.Config{Addr: addr, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()

	snapshot, _, err := source.Current()
	if err != nil {
		log.Fatal(err)
	}
	sizes := source.Sizes()
	fmt.Println(snapshot.ID, sizes.DER < sizes.PEM)
	// Output:
	// spiffe://example.org/ns/edge/sa/sensor true
}

// An agent that offers nothing but Envoy's protocol.
func ExampleConfig_sds() {
	_, err := light.Fetch(context.Background(), light.Config{
		Addr: "unix:///run/agent/sds.sock",
		SDS:  &light.SDS{Certificate: "default", Bundle: "ROOTCA"},
	})
	fmt.Println(err != nil) // nobody listens here
	// Output:
	// true
}

// A controller that has TLS 1.2 and no more is met halfway, fully verified.
func ExampleDialConstrained() {
	device, controller := "spiffe://example.org/device", "spiffe://example.org/controller"
	addr, stop := fakeapi.Example(device, controller)
	defer stop()
	open := func(id string) *light.Source {
		source, err := light.Open(context.Background(), light.Config{Addr: addr, SPIFFEID: spiffeid.RequireFromString(id), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			log.Fatal(err)
		}
		return source
	}
	is := func(want string) func(spiffeid.ID) error {
		return func(id spiffeid.ID) error {
			if id.String() != want {
				return errors.New("wanted is " + want)
			}
			return nil
		}
	}

	// The controller:
	own := open(controller)
	defer own.Close()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := light.ListenConstrained(raw, light.Constrained{Source: own, Authorize: is(device)})
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "hello")
	}()

	// The device:
	source := open(device)
	defer source.Close()
	conn, err := light.DialConstrained(context.Background(), "tcp", raw.Addr().String(), light.Constrained{Source: source, Authorize: is(controller)})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Println(string(text), err, conn.PeerID())
	<-served
	// Output:
	// hello <nil> spiffe://example.org/controller
}
