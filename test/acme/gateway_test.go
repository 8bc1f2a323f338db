package acme

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/sdk/acmecert/acmesds"
	"github.com/legation-io/legation/test/acme/pebble"
)

// gateway is an Envoy that ends TLS with a certificate by SDS and passes HTTP
// on to a program.
const gateway = `
node: {id: gateway, cluster: gateway}
static_resources:
  listeners:
  - name: https
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - name: one.test
              sds_config:
                resource_api_version: V3
                api_config_source:
                  api_type: API_TYPE
                  transport_api_version: V3
                  grpc_services: [{envoy_grpc: {cluster_name: sds}}]
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: https
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: "/"}, route: {cluster: program}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: program
    type: STATIC
    connect_timeout: 1s
    load_assignment: {cluster_name: program, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: PROGRAM}}}}]}]}
  - name: sds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: sds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "SOCKET"}}}}]}]}
`

func TestAGatewayGetsTheCertificateAndItsRenewalsBySDS(t *testing.T) {
	for _, api := range []string{"GRPC", "DELTA_GRPC"} {
		t.Run(api, func(t *testing.T) {
			s := newSite(t)
			o := s.options()
			o.Validity = 60 // much longer than a renewal takes
			p := pebble.Start(t, o)
			c := s.config(p, "one.test")
			c.NoARI, c.RenewAt = true, 0.06
			m := s.manage(c)
			program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "well") }))
			t.Cleanup(program.Close)
			socket := envoytest.Dir(t) + "/sds.sock"
			server, err := acmesds.New(acmesds.Config{Source: m, Socket: socket, Logger: slog.New(slog.NewTextHandler(s.Log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- server.Run(ctx) }()
			t.Cleanup(func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
			until(t, "the socket is there", func() bool { _, err := os.Stat(socket); return err == nil })
			// Envoy starts before there is a certificate, and waits for it.
			e := envoytest.Start(t, strings.NewReplacer("API_TYPE", api, "PROGRAM", fmt.Sprint(program.Listener.Addr().(*net.TCPAddr).Port), "SOCKET", socket).Replace(gateway), envoytest.Options{})
			roots := p.Roots(t)
			address := e.ListenerAddr("https")
			through := *s
			through.https = elsewhere{through.https, address}
			var first *x509.Certificate
			until(t, "the gateway serves", func() bool { first, err = through.leaf("one.test", roots); return err == nil })
			conn, err := through.dial("one.test", roots)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			old := &longLived{t: t, conn: conn, reader: bufio.NewReader(conn)}
			seen := map[string]bool{serial(first): true}
			until(t, "three certificates were served", func() bool {
				old.ask()
				leaf, err := through.leaf("one.test", roots)
				if err != nil {
					t.Fatalf("a handshake failed during a renewal: %v", err)
				}
				seen[serial(leaf)] = true
				return len(seen) >= 3
			})
			old.ask()
			t.Logf("%d requests on one connection through Envoy over two renewals", old.requests)
		})
	}
}

// elsewhere is a listener that says another address.
type elsewhere struct {
	net.Listener
	address string
}

func (e elsewhere) Addr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", e.address)
	return a
}
