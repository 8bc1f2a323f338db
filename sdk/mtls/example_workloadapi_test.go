package mtls_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// A server and a client as two programs write them, with identities of the
// Workload API. One process plays both here, so that each names its SPIFFEID;
// a program leaves workloadapi.Config empty.
func Example_workloadAPI() {
	addr, stop := fakeapi.Example("spiffe://example.org/ns/ml/sa/model", "spiffe://example.org/ns/shop/sa/web") // stands for the agent
	defer stop()
	ctx := context.Background()
	model := spiffeid.RequireFromString("spiffe://example.org/ns/ml/sa/model")
	web := spiffeid.RequireFromString("spiffe://example.org/ns/shop/sa/web")
	quiet := slog.New(slog.DiscardHandler)

	// The server:
	source, err := workloadapi.Open(ctx, workloadapi.Config{Addr: addr, SPIFFEID: model, Logger: quiet})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{
		Source:    source,
		Authorize: mtls.AuthorizeID(web),
		Hooks:     []handshake.Hook{handshake.LogHook(nil)}, // else failed handshakes are logged nowhere
	})
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := identity.PeerFromContext(r.Context())
		fmt.Fprintf(w, "hello %s", caller.ID)
	})}
	go l.Serve(server)
	defer server.Close()

	// The client:
	own, err := workloadapi.Open(ctx, workloadapi.Config{Addr: addr, SPIFFEID: web, Logger: quiet})
	if err != nil {
		log.Fatal(err)
	}
	defer own.Close()
	d, err := mtls.NewDialer(mtls.ClientConfig{Source: own, Authorize: mtls.AuthorizeID(model)})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: mtls.ExplainTransport(d.Transport())}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + l.Addr().String() + "/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Println(string(body))
	// Output: hello spiffe://example.org/ns/shop/sa/web
}
