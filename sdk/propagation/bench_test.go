package propagation

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
)

var five = []string{"a", "b", "c", "d", "stock", "db"}

func BenchmarkVerifyChainOf5FromCache(b *testing.B) {
	w := newWorld(b)
	in, r := w.inbound("db"), from(w.ca.ID("stock"), wire(w.tokens(five...)...))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.Accept(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyChainOf5(b *testing.B) {
	w := newWorld(b)
	in, r := w.inbound("db"), from(w.ca.ID("stock"), wire(w.tokens(five...)...))
	b.ReportAllocs()
	for b.Loop() {
		in.verifier = jwtcheck.New(jwtcheck.Config{Now: w.clock, CacheSize: -1})
		if _, err := in.Accept(r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuildChainOf5 is what the fifth hop adds to a call.
func BenchmarkBuildChainOf5(b *testing.B) {
	w := newWorld(b)
	c, err := w.inbound("stock").Accept(from(w.ca.ID("d"), wire(w.tokens(five[:5]...)...)))
	if err != nil {
		b.Fatal(err)
	}
	o, ctx := w.outbound("stock"), NewContext(context.Background(), c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := o.Header(ctx, w.ca.ID("db")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkServer is a request with a chain of one.
func BenchmarkServer(b *testing.B) {
	w := newWorld(b)
	h, err := Server(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), w.config("db"))
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(identity.ContextWithPeer(r.Context(), identity.Peer{ID: w.ca.ID("stock")}))
	r.Header.Set("X-Workload-Identity", wire(w.tokens("stock", "db")...))
	rec := httptest.NewRecorder()
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(rec, r)
	}
}
