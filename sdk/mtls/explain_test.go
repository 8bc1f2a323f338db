package mtls_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestARefusedRequestSaysWhy(t *testing.T) {
	for name, protos := range map[string][]string{"HTTP/2": nil, "HTTP/1.1": {"http/1.1"}} {
		t.Run(name, func(t *testing.T) {
			ca := pkitest.Example("example.org")
			l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{
				Source: ca.Source("/model"), NextProtos: protos,
				Authorize: mtls.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/web")),
			})
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.NotFoundHandler()}
			served := make(chan error, 1)
			go func() { served <- l.Serve(server) }()
			defer func() { server.Close(); <-served }()

			request := func(as string) error {
				d, err := mtls.NewDialer(mtls.ClientConfig{
					Source: ca.Source(as), NextProtos: protos,
					Authorize: mtls.AuthorizeID(spiffeid.RequireFromString("spiffe://example.org/model")),
				})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				client := &http.Client{Transport: mtls.ExplainTransport(d.Transport())}
				defer client.CloseIdleConnections()
				resp, err := client.Get("https://" + l.Addr().String())
				if err == nil {
					resp.Body.Close()
				}
				return err
			}
			if err := request("/web"); err != nil {
				t.Errorf("whom the server lets in: %v", err)
			}
			err = request("/stranger")
			var e *handshake.Error
			if !errors.As(err, &e) || e.Cause != handshake.Rejected || !strings.Contains(err.Error(), "/stranger") || !strings.Contains(err.Error(), e.Link()) {
				t.Errorf("whom it refuses: %v", err)
			}
		})
	}
}
