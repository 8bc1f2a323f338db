package acmesds_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/legation-io/legation/sdk/acmecert"
	"github.com/legation-io/legation/sdk/acmecert/acmesds"
)

// An Envoy beside the program serves the certificate that the program keeps.
// In Envoy's bootstrap, as the transport socket's only certificate:
//
//	common_tls_context:
//	  tls_certificate_sds_secret_configs:
//	  - name: model.example.org
//	    sds_config:
//	      resource_api_version: V3
//	      api_config_source:
//	        api_type: GRPC
//	        transport_api_version: V3
//	        grpc_services: [{envoy_grpc: {cluster_name: sds}}]
//
// and a static cluster "sds" (HTTP/2) whose endpoint is the pipe of the socket.
func Example() {
	m, err := acmecert.New(acmecert.Config{Domains: []string{"model.example.org"}, TermsAgreed: true, Storage: &acmecert.Memory{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	dir, err := os.MkdirTemp("", "sds")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	server, err := acmesds.New(acmesds.Config{Source: m, Socket: filepath.Join(dir, "sds.sock")})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // at once, in this example; go m.Run(ctx) beside it otherwise
	fmt.Println(server.Run(ctx))
	// Output: <nil>
}
