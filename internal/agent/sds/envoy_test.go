package sds

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/envoytest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

const mine = distribute.Scope("session/mine")

// rig is a door on a Unix socket and an Envoy that gets its secrets there.
type rig struct {
	*testing.T
	engine *distribute.Engine
	socket string
	log    *logBuffer
	pki    *pki
	server *svid.SVID
	client *svid.SVID
	envoy  *envoytest.Envoy
	addr   string
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, engine: distribute.New(distribute.Params{}), log: &logBuffer{}, pki: newPKI(t)}
	r.server, r.client = r.pki.svid("/ns/a/sa/server"), r.pki.svid("/ns/a/sa/client")
	r.socket = serve(t, New(Params{
		Engine: r.engine, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Authorise: func(context.Context) (*Attachment, error) {
			return &Attachment{Subscriber: "envoy", Scopes: []distribute.Scope{mine},
				Missing: func(_, name string) string { return "no entry says " + name }}, nil
		},
	}))
	return r
}

// serve runs the door on a Unix socket until the test ends.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	socket := filepath.Join(envoytest.Dir(t), "sds.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions()...)
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		s.Wait()
		<-done
	})
	return socket
}

func (r *rig) push(t *svid.Trust) {
	r.engine.Replace(mine, Secrets(&svid.Update{SVIDs: []*svid.SVID{r.server}, Trust: t}, SecretNames{}))
}

// start brings up an Envoy with one mTLS listener that answers 200.
func (r *rig) start(api, name, validation string) {
	r.Helper()
	source := fmt.Sprintf("{resource_api_version: V3, api_config_source: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}}", api)
	r.envoy = envoytest.Start(r.T, fmt.Sprintf(`
node: {id: rig, cluster: rig}
static_resources:
  clusters: [%s]
  listeners:
  - %s
`, strings.ReplaceAll(sdsCluster, "SOCKET", r.socket), listener(source, name, validation)), envoytest.Options{NoWait: true})
}

const sdsCluster = `{name: sds, connect_timeout: 1s,
    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},
    load_assignment: {cluster_name: sds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: "SOCKET"}}}}]}]}}`

// listener is in YAML's flow style, so that it can stand anywhere.
func listener(source, name, validation string) string {
	return fmt.Sprintf(`{name: in, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{
    filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: in, http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}],
      route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}}}],
    transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
      require_client_certificate: true, disable_stateless_session_resumption: true, disable_stateful_session_resumption: true,
      common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3},
        tls_certificate_sds_secret_configs: [{name: "%s", sds_config: %s}],
        validation_context_sds_secret_config: {name: "%s", sds_config: %s}}}}}]}`, name, source, validation, source)
}

// call makes one handshake and one request, and returns the serial that Envoy
// presented.
func (r *rig) call(client *svid.SVID) (string, error) {
	if r.addr == "" {
		r.addr = r.envoy.ListenerAddr("in")
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		Certificates: []tls.Certificate{pair(client)}, InsecureSkipVerify: true, // a SPIFFE server has no name to check; the chain is
		MinVersion: tls.VersionTLS13,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			between := x509.NewCertPool()
			between.AddCert(r.pki.issuer.cert)
			_, err = leaf.Verify(x509.VerifyOptions{Roots: r.pki.pool(), Intermediates: between})
			return err
		}}}
	conn, err := d.Dial("tcp", r.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	// In TLS 1.3 the server judges the client after the client has finished:
	// the reason is what can be read, whatever becomes of the write.
	_, werr := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", errors.Join(err, werr)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Text(16), nil
}

// served waits until the client is answered with the certificate.
func (r *rig) served(when string, client, want *svid.SVID) {
	r.Helper()
	begin := time.Now()
	r.envoy.Until(when, func() error {
		got, err := r.call(client)
		if err == nil && got != want.Serial {
			err = fmt.Errorf("presented %s, not %s", got, want.Serial)
		}
		return err
	})
	r.Logf("%s: after %s", when, time.Since(begin).Round(100*time.Microsecond))
}

// refused waits until the client is refused for that reason.
func (r *rig) refused(when string, client *svid.SVID, reason string) {
	r.Helper()
	begin := time.Now()
	r.envoy.Until(when, func() error {
		_, err := r.call(client)
		if err == nil {
			return errors.New("it was served")
		}
		if !strings.Contains(err.Error(), reason) {
			return fmt.Errorf("refused with %q, not %q", err, reason)
		}
		return nil
	})
	r.Logf("%s: after %s", when, time.Since(begin).Round(100*time.Microsecond))
}

// acked waits until the ledger says so.
func (r *rig) acked(name string) {
	r.Helper()
	r.envoy.Until(name+" is acknowledged", func() error {
		lines := r.engine.Statuses(distribute.Filter{Type: TypeSecret, Name: name})
		for _, l := range lines {
			if l.Acked != "" && l.Acked == l.Sent {
				return nil
			}
		}
		return fmt.Errorf("the ledger says %+v", lines)
	})
}

func TestEnvoyServesRotatesAndRefusesTheRevoked(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t)
			r.push(r.pki.trust())
			r.start(api, "default", "ROOTCA")
			r.envoy.Ready()
			r.served("the first handshake", r.client, r.server)
			r.acked("default")
			r.acked("ROOTCA")

			r.server = r.pki.svid("/ns/a/sa/server")
			trust := r.pki.trust()
			r.push(trust)
			r.served("a new certificate is presented", r.client, r.server)

			r.push(r.pki.trust(r.client))
			r.refused("a revoked client is refused", r.client, "revoked certificate")
			r.acked("ROOTCA")
			r.served("a bystander is served", r.pki.svid("/ns/a/sa/bystander"), r.server)
			if n, ok := r.envoy.Stat("listener.127.0.0.1_0.ssl.fail_verify_error"); !ok || n == 0 {
				t.Errorf("Envoy counted %d refusals (%v)", n, ok)
			}
			if strings.Contains(r.log.String(), "PRIVATE KEY") {
				t.Error("a key is in the log")
			}
		})
	}
}

func TestEnvoyKeepsTheOldSecretWhenTheNewOneIsBroken(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t)
			r.push(r.pki.trust())
			r.start(api, "default", "ROOTCA")
			r.envoy.Ready()
			r.served("the first handshake", r.client, r.server)
			r.acked("default")
			before := r.engine.Statuses(distribute.Filter{Name: "default"})[0]

			broken, err := proto.Marshal(&tlsv3.Secret{Name: "default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: inline([]byte("no certificate")), PrivateKey: inline([]byte("no key"))}}})
			if err != nil {
				t.Fatal(err)
			}
			r.engine.Apply(distribute.Change{Scope: mine, Resource: distribute.NewResource(TypeSecret, "default", broken)})
			r.envoy.Until("the refusal is in the ledger", func() error {
				l := r.engine.Statuses(distribute.Filter{Name: "default"})[0]
				if l.Error == "" || l.Acked != before.Sent || l.Sent != distribute.VersionOf(broken) {
					return fmt.Errorf("the ledger says %+v", l)
				}
				return nil
			})
			r.served("the old certificate is still presented", r.client, r.server)
			if !strings.Contains(r.log.String(), "refused an update") {
				t.Error("the refusal is not in the log")
			}
			r.server = r.pki.svid("/ns/a/sa/server")
			r.push(r.pki.trust())
			r.served("the next good one is presented", r.client, r.server)
			r.acked("default")
		})
	}
}

func TestEnvoyWarmsWhenAMissingNameAppears(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t)
			r.push(r.pki.trust())
			r.start(api, "retail-service-cert", "ROOTCA")
			r.envoy.Until("the missing name is in the log", func() error {
				if l := r.log.String(); !strings.Contains(l, "name=retail-service-cert") || !strings.Contains(l, "no entry says retail-service-cert") {
					return fmt.Errorf("the log says %s", l)
				}
				return nil
			})
			r.acked("ROOTCA")
			streams := r.engine.Subscribers()
			r.server = r.pki.svid("/ns/a/sa/retail", "retail-service-cert")
			r.push(r.pki.trust())
			r.envoy.Ready()
			r.served("the name appeared", r.client, r.server)
			if n := strings.Count(r.log.String(), "name=retail-service-cert"); n != 1 {
				t.Errorf("logged %d times", n)
			}
			since := func(list []distribute.SubscriberInfo) (out []time.Time) {
				for _, s := range list {
					out = append(out, s.Since)
				}
				slices.SortFunc(out, time.Time.Compare)
				return out
			}
			if d := cmp.Diff(since(streams), since(r.engine.Subscribers())); d != "" {
				t.Errorf("the streams did not stay open: %s", d)
			}
		})
	}
}

// The traps of a CRL in Envoy. Each is why something else is as it is: the
// authority's CRL ends with its certificate, and a new issuing CA's empty CRL
// is acknowledged everywhere before it signs.
func TestEnvoyCRLTraps(t *testing.T) {
	for name, c := range map[string]struct {
		trust  func(p *pki) *svid.Trust
		reason string
	}{
		"an expired CRL of the issuing CA refuses everyone": {
			func(p *pki) *svid.Trust { return p.trustWith(p.crl(p.root, time.Hour), p.crl(p.issuer, -time.Minute)) }, "expired certificate"},
		"an expired CRL of the root refuses everyone": {
			func(p *pki) *svid.Trust { return p.trustWith(p.crl(p.root, -time.Minute), p.crl(p.issuer, time.Hour)) }, "expired certificate"},
		"with a CRL of the root only everyone is refused": {
			func(p *pki) *svid.Trust { return p.trustWith(p.crl(p.root, time.Hour)) }, "unknown certificate authority"},
		"with a CRL of the issuing CA only everyone is refused": {
			func(p *pki) *svid.Trust { return p.trustWith(p.crl(p.issuer, time.Hour)) }, "unknown certificate authority"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.push(r.pki.trust())
			r.start("DELTA_GRPC", "default", "ROOTCA")
			r.envoy.Ready()
			r.served("with all CRLs current", r.client, r.server)
			r.push(c.trust(r.pki))
			r.refused(name, r.client, c.reason)
			r.push(r.pki.trust())
			r.served("with all CRLs current again", r.client, r.server)
		})
	}
}

// Envoy's SPIFFE validator ignores the crl beside it: a revoked peer gets 200.
// Therefore Secrets never asks for it.
func TestEnvoySPIFFEValidatorServesTheRevoked(t *testing.T) {
	r := newRig(t)
	r.push(r.pki.trust(r.client))
	r.engine.Apply(distribute.Change{Scope: mine, Resource: spiffeValidator(t, r.pki, r.pki.trust(r.client))})
	r.start("DELTA_GRPC", "default", "spiffe-validator")
	r.envoy.Ready()
	r.served("the SPIFFE validator serves a revoked client", r.client, r.server)
	r.envoy.Kill()

	r.addr = ""
	r.start("DELTA_GRPC", "default", "ROOTCA")
	r.envoy.Ready()
	r.refused("the default validator refuses it", r.client, "revoked certificate")
}

func TestEnvoyTakesListenersAndSecretsFromOneStream(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t)
			r.push(r.pki.trust())
			all := Secrets(&svid.Update{SVIDs: []*svid.SVID{r.server}, Trust: r.pki.trust()}, SecretNames{})
			r.engine.Replace(mine, append(all, listenerResource(t, listener("{ads: {}, resource_api_version: V3}", "default", "ROOTCA"))))
			r.envoy = envoytest.Start(t, fmt.Sprintf(`
node: {id: rig, cluster: rig}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources: {clusters: [%s]}
`, api, strings.ReplaceAll(sdsCluster, "SOCKET", r.socket)), envoytest.Options{})
			r.served("the pushed listener serves with the pushed secret", r.client, r.server)
			r.acked("default")
			if subs := r.engine.Subscribers(); len(subs) != 1 || len(subs[0].Types) != 3 {
				t.Errorf("subscribers: %+v", subs)
			}
			r.engine.Replace(mine, all)
			r.envoy.Until("the removed listener is gone", func() error {
				_, err := r.call(r.client)
				if err == nil {
					return errors.New("it still serves")
				}
				return nil
			})
		})
	}
}
