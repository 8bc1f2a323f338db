package handshake

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
)

// envoyBinary is LEGATION_ENVOY, else the one that the repository pins.
func envoyBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("LEGATION_ENVOY")
	if path == "" {
		path = "../../tools/envoy/envoy"
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("there is no Envoy; run: make envoy (or set LEGATION_ENVOY): %v", err)
	}
	return path
}

type object = map[string]any

func inline(der []byte, kind string) object {
	return object{"inline_string": string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))}
}

// envoyTLS is a common_tls_context.
func envoyTLS(t *testing.T, own *tls.Certificate, root *authority, uri string, change func(object)) object {
	t.Helper()
	c := object{"validation_context": object{"trusted_ca": inline(root.cert.Raw, "CERTIFICATE")},
		"tls_params": object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}}
	if uri != "" {
		c["validation_context"].(object)["match_typed_subject_alt_names"] = []object{{"san_type": "URI", "matcher": object{"exact": uri}}}
	}
	if own != nil {
		key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		c["tls_certificates"] = []object{{"certificate_chain": inline(own.Certificate[0], "CERTIFICATE"), "private_key": inline(key, "PRIVATE KEY")}}
	}
	if change != nil {
		change(c)
	}
	return c
}

// startEnvoy runs an Envoy with these listeners and clusters until the test
// ends, and returns the listeners' addresses by name.
func startEnvoy(t *testing.T, listeners, clusters []object) map[string]string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "envoy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config, addresses := filepath.Join(dir, "bootstrap.json"), filepath.Join(dir, "admin.sock")
	raw, err := json.Marshal(object{
		"admin":            object{"address": object{"pipe": object{"path": addresses, "mode": 0o600}}},
		"static_resources": object{"listeners": listeners, "clusters": clusters},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envoyBinary(t), "-c", config, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	deadline := time.Now().Add(patience)
	for {
		found, err := envoyListeners(addresses)
		if err == nil && len(found) == len(listeners) {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("Envoy has the listeners %v: %v", found, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// envoyListeners asks the admin socket; one request, one connection.
func envoyListeners(socket string) (map[string]string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(conn, "GET /listeners HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(conn); err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(raw.String()) {
		if name, addr, ok := strings.Cut(strings.TrimSpace(line), "::"); ok {
			found[name] = addr
		}
	}
	return found, nil
}

func address(addr string) object {
	host, port, _ := net.SplitHostPort(addr)
	var n int
	fmt.Sscan(port, &n)
	return object{"socket_address": object{"address": host, "port_value": n}}
}

func typed(name string, fields object) object {
	fields["@type"] = "type.googleapis.com/" + name
	return fields
}

const (
	downstreamTLS = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
	upstreamTLS   = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
)

func envoyListener(name string, chain object, to string) object {
	chain["filters"] = []object{{"name": "tcp", "typed_config": typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", object{"stat_prefix": name, "cluster": to})}}
	return object{"name": name, "address": address("127.0.0.1:0"), "filter_chains": []object{chain}}
}

func envoyCluster(name, to string, socket object) object {
	c := object{"name": name, "connect_timeout": "5s", "load_assignment": object{"cluster_name": name,
		"endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": address(to)}}}}}}}
	if socket != nil {
		c["transport_socket"] = object{"name": "tls", "typed_config": socket}
	}
	return c
}

func TestEnvoyServers(t *testing.T) {
	w := newWorld(t)
	id := "spiffe://example.org/client"
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	context := typed(downstreamTLS, object{"require_client_certificate": true, "common_tls_context": envoyTLS(t, &w.server, w.root, id, nil)})
	addr := startEnvoy(t, []object{envoyListener("mtls", object{"transport_socket": object{"name": "tls", "typed_config": context}}, "echo")},
		[]object{envoyCluster("echo", echo.Addr().String(), nil)})["mtls"]

	always := func(c tls.Certificate) *tls.Config {
		config := calling()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		return config
	}
	old := always(w.client)
	old.MaxVersion = tls.VersionTLS12
	for _, row := range []struct {
		name   string
		config *tls.Config
		want   verdict
	}{
		{"good", always(w.client), verdict{}},
		{"no certificate", calling(), verdict{NoCertificate, Own, 116, nil}},
		{"unknown CA", always(w.foreign.issue(t, id, nil)), verdict{UnknownCA, Own, 48, []string{`issued by "CN=foreign root"`}}},
		{"expired", always(w.root.issue(t, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), verdict{Expired, Own, 45, nil}},
		{"another identity", always(w.root.issue(t, "spiffe://example.org/other", nil)), verdict{Rejected, Own, 46, []string{"no name of the certificate is on its list", "spiffe://example.org/other"}}},
		{"an old version", old, verdict{ProtocolVersion, "", 70, nil}},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			client := &party{config: row.config, verify: w.judge(chaincheck.Server)}
			client.run(t, Client, conn)
			row.want.check(t, client, Client)
		})
	}
}

func TestEnvoyClients(t *testing.T) {
	w := newWorld(t)
	foreign := w.foreign.issue(t, "spiffe://example.org/client", nil)
	rows := []struct {
		name    string
		context object
		want    verdict
	}{
		{"good", envoyTLS(t, &w.client, w.root, "spiffe://example.org/server", nil), verdict{}},
		{"no-certificate", envoyTLS(t, nil, w.root, "", nil), verdict{NoCertificate, Peer, 0, nil}},
		{"unknown-ca", envoyTLS(t, &foreign, w.root, "", nil), verdict{UnknownCA, Peer, 0, nil}},
		{"does-not-know-our-ca", envoyTLS(t, &w.client, w.foreign, "", nil), verdict{UnknownCA, Own, 48, []string{"ours is "}}},
		{"wants-another-identity", envoyTLS(t, &w.client, w.root, "spiffe://example.org/db", nil), verdict{Rejected, Own, 46, nil}},
		{"other-protocols", envoyTLS(t, &w.client, w.root, "", func(c object) { c["alpn_protocols"] = []string{"spdy"} }), verdict{ALPN, "", 0, []string{`"spdy"`}}},
	}
	var listeners, clusters []object
	accepting := map[string]net.Listener{}
	for _, row := range rows {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		accepting[row.name] = l
		listeners = append(listeners, envoyListener(row.name, object{}, row.name))
		clusters = append(clusters, envoyCluster(row.name, l.Addr().String(), typed(upstreamTLS, object{"sni": "localhost", "common_tls_context": row.context})))
	}
	addrs := startEnvoy(t, listeners, clusters)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			program, err := net.Dial("tcp", addrs[row.name])
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			conn, err := accepting[row.name].Accept()
			if err != nil {
				t.Fatal(err)
			}
			config := serving(w.server)
			config.NextProtos = []string{"h2"}
			server := &party{config: config, verify: w.judge(chaincheck.Client)}
			server.run(t, Server, conn)
			row.want.check(t, server, Server)
			if server.err != nil && server.err.SNI != "localhost" {
				t.Errorf("SNI %q", server.err.SNI)
			}
			if errors.Is(server.got, &Error{Cause: Other}) {
				t.Error("a cause without a name")
			}
		})
	}
}
