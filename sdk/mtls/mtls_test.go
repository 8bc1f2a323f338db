package mtls_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // connections are closed here all the time
	goleak.VerifyTestMain(m)
}

const (
	web   = "/ns/shop/sa/web"
	model = "/ns/ml/sa/model-a"
)

// serve starts an HTTP server that answers with the caller's SPIFFE ID.
func serve(t testing.TB, config mtls.ServerConfig) string {
	t.Helper()
	l, err := mtls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := identity.PeerFromContext(r.Context())
		if !ok {
			t.Error("a request without a peer")
		}
		io.WriteString(w, r.Proto+" "+peer.ID.String())
	})}
	done := make(chan error, 1)
	go func() { done <- l.Serve(server) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dialer(t testing.TB, config mtls.ClientConfig) *mtls.Dialer {
	t.Helper()
	d, err := mtls.NewDialer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func get(t testing.TB, client *http.Client, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "https://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestHTTPWithIdentitiesOnBothSides(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeID(d.ID(web))})
	for _, tt := range []struct {
		name   string
		protos []string
		want   string
	}{
		{"HTTP/2 by default", nil, "HTTP/2.0 spiffe://example.org" + web},
		{"HTTP/1.1 where asked", []string{"http/1.1"}, "HTTP/1.1 spiffe://example.org" + web},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dials := 0
			dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), NextProtos: tt.protos,
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					dials++
					return (&net.Dialer{}).DialContext(ctx, network, address)
				}})
			client := &http.Client{Transport: dd.Transport()}
			defer client.CloseIdleConnections()
			for range 3 {
				got, err := get(t, client, address)
				if err != nil || got != tt.want {
					t.Fatalf("got %q, %v", got, err)
				}
			}
			if dials != 1 {
				t.Errorf("%d connections for three requests in a row", dials)
			}
		})
	}
}
