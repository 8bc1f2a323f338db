package propagation_test

import (
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/mtls"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/propagation/internal/fakeca"
)

// TestTheChainGoesThroughHTTPOverMTLS: shop > orders > db, each connection
// verified by sdk/mtls.
func TestTheChainGoesThroughHTTPOverMTLS(t *testing.T) {
	x509, jwt := pkitest.New(t, "example.org", nil), fakeca.New(t, "example.org")
	keys := jwtcheck.Static{K: jwtcheck.NewKeys(jwt.Bundle(t))}
	config := func(name, next string) propagation.Config {
		return propagation.Config{
			Identity: identity.NewMemory(&identity.Snapshot{ID: jwt.ID(name)}), Keys: keys,
			Tokens: signer{&fakeca.Workload{CA: jwt, ID: jwt.ID(name)}}, Audience: propagation.ToWorkload(jwt.ID(next)),
		}
	}
	serve := func(name, next string, h http.HandlerFunc) string {
		handler, err := propagation.Server(h, config(name, next))
		if err != nil {
			t.Fatal(err)
		}
		l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: x509.Source("/" + name), Authorize: mtls.AuthorizeMemberOf(jwt.Domain), NextProtos: mtls.HTTPProtos})
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: handler}
		var running sync.WaitGroup
		running.Go(func() { l.Serve(server) })
		t.Cleanup(func() {
			server.Close()
			l.Close()
			running.Wait()
		})
		return "https://" + l.Addr().String()
	}
	client := func(name, next string) http.RoundTripper {
		d, err := mtls.NewDialer(mtls.ClientConfig{Source: x509.Source("/" + name), Authorize: mtls.AuthorizeID(jwt.ID(next))})
		if err != nil {
			t.Fatal(err)
		}
		base := d.Transport()
		t.Cleanup(func() { base.CloseIdleConnections(); d.Close() })
		rt, err := propagation.Transport(base, config(name, next))
		if err != nil {
			t.Fatal(err)
		}
		return rt
	}
	db := serve("db", "nobody", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto+" "+r.Header.Get("spiffe-id")+" "+propagation.FromContext(r.Context()).String())
	})
	toDB := client("orders", "db")
	orders := serve("orders", "db", func(w http.ResponseWriter, r *http.Request) {
		req, _ := http.NewRequestWithContext(r.Context(), "GET", db, nil)
		resp, err := toDB.RoundTrip(req)
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	})
	req, _ := http.NewRequest("GET", orders, nil)
	resp, err := client("shop", "orders").RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if want := "HTTP/2.0 spiffe://example.org/orders spiffe://example.org/shop > spiffe://example.org/orders"; string(body) != want {
		t.Errorf("%s: %s, want %s", resp.Status, body, want)
	}
	// A peer that is verified and has another's token is refused.
	stolen, _ := jwt.Sign(jwt.ID("shop"), []string{jwt.ID("orders").String()}, nil)
	d, err := mtls.NewDialer(mtls.ClientConfig{Source: x509.Source("/mallory"), Authorize: mtls.AuthorizeID(jwt.ID("orders"))})
	if err != nil {
		t.Fatal(err)
	}
	base := d.Transport()
	defer func() { base.CloseIdleConnections(); d.Close() }()
	req, _ = http.NewRequest("GET", orders, nil)
	req.Header.Set("x-workload-identity", "jwt:"+stolen)
	resp, err = base.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 403 {
		t.Errorf("%s: %s", resp.Status, body)
	}
}
