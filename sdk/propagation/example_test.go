package propagation_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/propagation/internal/fakeca"
)

// A service that hears who called, and calls on behalf of its callers. The
// connection itself is sdk/mtls's; here a function stands for it.
func Example() {
	ca := authority() // stands for the agent's socket: see package tokens
	keys := jwtcheck.Static{K: ca.keys}
	shop, orders, stock := ca.ID("shop"), ca.ID("orders"), ca.ID("stock")

	// stock says who called.
	handler, err := propagation.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chain := propagation.FromContext(r.Context())
		fmt.Println("origin:", chain.Origin())
		for _, hop := range chain.Hops() {
			fmt.Println("hop:   ", hop.ID, "by", hop.Proof)
		}
		fmt.Println("header:", r.Header.Get("spiffe-id"))
	}), propagation.Config{Identity: is(stock), Keys: keys})
	if err != nil {
		log.Fatal(err)
	}
	stockServer := httptest.NewServer(overTLS(orders, handler))
	defer stockServer.Close()

	// orders passes on who called it.
	config := propagation.Config{
		Identity: is(orders), Keys: keys, Tokens: ca.tokens(orders),
		Audience: propagation.ToWorkload(stock),
	}
	transport, err := propagation.Transport(http.DefaultTransport, config)
	if err != nil {
		log.Fatal(err)
	}
	handler, err = propagation.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), "GET", stockServer.URL, nil)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
	}), config)
	if err != nil {
		log.Fatal(err)
	}
	ordersServer := httptest.NewServer(overTLS(shop, handler))
	defer ordersServer.Close()

	// shop begins.
	first, err := propagation.Transport(http.DefaultTransport, propagation.Config{
		Identity: is(shop), Tokens: ca.tokens(shop), Audience: propagation.ToWorkload(orders),
	})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: first}
	resp, err := client.Get(ordersServer.URL)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	// Output:
	// origin: spiffe://example.org/shop
	// hop:    spiffe://example.org/shop by token
	// hop:    spiffe://example.org/orders by token
	// header: spiffe://example.org/orders
}

// At the edge identity headers of outsiders are removed, and the chain begins.
func ExampleServer_edge() {
	handler, err := propagation.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%q %s\n", r.Header.Get("spiffe-id"), propagation.FromContext(r.Context()))
	}), propagation.Config{Mode: propagation.Edge})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Spiffe-Id", "spiffe://example.org/admin")
	handler.ServeHTTP(httptest.NewRecorder(), r)
	// Output:
	// "" nobody
}

func is(id spiffeid.ID) identity.Source {
	return identity.NewMemory(&identity.Snapshot{ID: id})
}

// overTLS stands for a server of sdk/mtls, which puts the verified peer into the
// context.
func overTLS(peer spiffeid.ID, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: peer})))
	})
}

type example struct {
	*fakeca.CA
	keys *jwtcheck.Keys
}

func authority() example {
	t := &testing.B{}
	ca := fakeca.New(t, "example.org")
	return example{ca, jwtcheck.NewKeys(ca.Bundle(t))}
}

type signer struct{ *fakeca.Workload }

func (e example) tokens(id spiffeid.ID) propagation.TokenSource {
	return signer{&fakeca.Workload{CA: e.CA, ID: id}}
}

// Token implements propagation.TokenSource.
func (s signer) Token(ctx context.Context, audience spiffeid.ID, ext map[string]string) (propagation.Token, error) {
	text, expires, err := s.Fetch(ctx, audience, ext)
	return propagation.Token{Text: text, ExpiresAt: expires}, err
}
