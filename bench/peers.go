package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/legation-io/legation/internal/freeport"
)

// envoy is the binary that make envoy fetches.
func (r *run) envoy() (string, error) {
	path := os.Getenv("LEGATION_ENVOY")
	if path == "" {
		path = filepath.Join(r.root, "tools", "envoy", "envoy")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; run: make envoy", err)
	}
	return path, nil
}

// Hand-written bootstraps, as short as they get. %[1]s and so on: address
// and port to listen at, address and port to go to, filter, TLS.
const (
	peerBootstrap = `static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters: [%[3]s]
%[4]s
  clusters:
  - name: next
    type: STATIC
    load_assignment: {cluster_name: next, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
%[5]s
`
	tcpFilter = `{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: next}}`

	httpFilter = `{name: http, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: http, route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: next}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}`
)

// peerTLS is a transport socket with certificate and root inline.
func peerTLS(indent, kind, cert, key, root, peer string) string {
	require := ""
	if kind == "DownstreamTlsContext" {
		require = ", require_client_certificate: true"
	}
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, "\n", `\n`) + `"` }
	return fmt.Sprintf(`%stransport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.%s%s, common_tls_context: {
%s  tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3},
%s  tls_certificates: [{certificate_chain: {inline_string: %s}, private_key: {inline_string: %s}}],
%s  validation_context: {trusted_ca: {inline_string: %s}, match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: %q}}]}}}}`,
		indent, kind, require, indent, indent, quote(cert), quote(key), indent, quote(root), peer)
}

// peerPair is two hand-written Envoys with mTLS between them: at TCP, or
// parsing HTTP/1.1 as a classic sidecar does.
func peerPair(r *run, keys *pki, name, filter, backend string) (_ *pair, err error) {
	binary, err := r.envoy()
	if err != nil {
		return nil, err
	}
	outbound, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	inbound, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	port := func(address string) uint16 { return netip.MustParseAddrPort(address).Port() }
	root := asPEM("CERTIFICATE", keys.root.Raw)
	p := &pair{name: name, enter: outbound}
	var children []*child
	p.close = func() {
		for _, c := range children {
			_ = c.stop()
		}
	}
	for i, who := range []string{"web", "api"} {
		update, err := keys.update(who)
		if err != nil {
			p.close()
			return nil, err
		}
		cert, key := asPEM("CERTIFICATE", update.SVIDs[0].Chain[0]), asPEM("PRIVATE KEY", update.SVIDs[0].KeyPKCS8)
		var bootstrap string
		listen := outbound
		if i == 0 {
			bootstrap = fmt.Sprintf(peerBootstrap, port(outbound), port(inbound), filter, "", peerTLS("    ", "UpstreamTlsContext", cert, key, root, idOf("api")))
		} else {
			listen = inbound
			bootstrap = fmt.Sprintf(peerBootstrap, port(inbound), port(backend), filter, peerTLS("      ", "DownstreamTlsContext", cert, key, root, idOf("web")), "")
		}
		c, err := startChild([]string{binary, "--config-yaml", bootstrap, "--concurrency", "2", "--disable-hot-restart", "--log-level", "error"})
		if err != nil {
			p.close()
			return nil, err
		}
		children, p.pids = append(children, c), append(p.pids, c.pid)
		if err := c.until(20*time.Second, "the hand-written Envoy listens", func() bool { return listening("tcp", listen) }); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}
