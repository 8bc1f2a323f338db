package envoy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	accesslogcfgv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

// seen collects what a LogServer tells.
type seen struct {
	mu          sync.Mutex
	connections []*Connection
	failures    []Failure
}

func (s *seen) params() LogServerParams {
	return LogServerParams{
		OnConnect: func(c *Connection) { s.mu.Lock(); s.connections = append(s.connections, c); s.mu.Unlock() },
		OnFailure: func(f Failure) { s.mu.Lock(); s.failures = append(s.failures, f); s.mu.Unlock() },
	}
}

// next waits for the first failure that fits.
func (s *seen) next(t *testing.T, what string, fits func(Failure) bool, meanwhile func()) Failure {
	t.Helper()
	var out Failure
	envoytest.Eventually(t, what, func() bool {
		meanwhile()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.failures {
			if fits(f) {
				out = f
				return true
			}
		}
		return false
	})
	return out
}

func (s *seen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connections, s.failures = nil, nil
}

// A real Envoy, and one connection for each way in which a handshake ends.
func TestEveryHandshakeIsToldWithItsCause(t *testing.T) {
	var told seen
	reg := prometheus.NewRegistry()
	params := told.params()
	params.Metrics = NewMetrics(reg)
	logs := NewLogServer(params)

	ca, other := envoytest.NewCA(t, "ours"), envoytest.NewCA(t, "theirs")
	server, client := ca.Issue("spiffe://a.test/server"), ca.Issue("spiffe://a.test/client")
	revoked := ca.Issue("spiffe://a.test/revoked")
	expired := ca.IssueValid("spiffe://a.test/old", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	future := ca.IssueValid("spiffe://a.test/early", time.Now().Add(time.Hour), time.Now().Add(2*time.Hour))
	serverOnly := ca.IssueFor("spiffe://a.test/server-only", x509.ExtKeyUsageServerAuth)
	mailOnly := ca.IssueFor("spiffe://a.test/mail", x509.ExtKeyUsageEmailProtection)
	person := ca.Issue("https://a.test/ada")
	foreign := other.Issue("spiffe://a.test/client")
	back := envoytest.Echo(t, "127.0.0.1:0")
	crl := ca.CRL(revoked)
	var port [14]uint32
	for i := range port {
		port[i] = envoytest.Port(t)
	}
	peer := func(leaf *envoytest.Leaf, ca *envoytest.CA, crl []byte, san string) *envoytest.Peer {
		return &envoytest.Peer{Leaf: leaf, CA: ca, CRL: crl, SAN: san}
	}
	const id = "spiffe://a.test/server"
	startEnvoy(t, logs, nil, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType,
			envoytest.Cluster(t, "program", "127.0.0.1", back, nil),
			envoytest.Cluster(t, "nobody", "127.0.0.1", 1, nil),
			envoytest.Cluster(t, "empty", "", 0, nil),
			envoytest.Cluster(t, "good", "127.0.0.1", port[0], peer(client, ca, crl, id)),
			envoytest.Cluster(t, "wrong", "127.0.0.1", port[0], peer(client, ca, crl, "spiffe://a.test/else")),
			envoytest.Cluster(t, "weare", "127.0.0.1", port[0], peer(revoked, ca, crl, id)),
			envoytest.Cluster(t, "theirs", "127.0.0.1", port[0], peer(client, other, nil, id)),
			envoytest.Cluster(t, "theyare", "127.0.0.1", port[0], peer(client, ca, ca.CRL(server), id)),
			envoytest.Cluster(t, "plain", "127.0.0.1", back, peer(client, ca, crl, id)),
		)
		unmatched := envoytest.Inbound(t, "unmatched", "127.0.0.1", port[2], "program", *peer(server, ca, crl, ""))
		unmatched.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		unmatched.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "envoy.filters.listener.tls_inspector",
			ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: envoytest.Any(t, &inspectorv3.TlsInspector{})}}}
		nothing := envoytest.Outbound(t, "unnamed", "127.0.0.1", port[10], "good")
		nothing.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(1)}
		nothing.AccessLog = []*accesslogcfgv3.AccessLog{envoytest.UnmatchedLog(t, accesslog.OutboundListener)}
		a.Set(envoytest.ListenerType,
			envoytest.Inbound(t, "in", "127.0.0.1", port[0], "program", *peer(server, ca, crl, "")),
			envoytest.Inbound(t, "only", "127.0.0.1", port[1], "program", *peer(server, ca, crl, "spiffe://a.test/only")),
			unmatched,
			envoytest.Inbound(t, "gone", "127.0.0.1", port[3], "nobody", *peer(server, ca, crl, "")),
			envoytest.Inbound(t, "nocrl", "127.0.0.1", port[11], "program", *peer(server, ca, other.CRL(), "")),
			envoytest.Outbound(t, "good", "127.0.0.1", port[4], "good"),
			envoytest.Outbound(t, "wrong", "127.0.0.1", port[5], "wrong"),
			envoytest.Outbound(t, "weare", "127.0.0.1", port[6], "weare"),
			envoytest.Outbound(t, "theirs", "127.0.0.1", port[7], "theirs"),
			envoytest.Outbound(t, "theyare", "127.0.0.1", port[8], "theyare"),
			envoytest.Outbound(t, "plain", "127.0.0.1", port[9], "plain"),
			nothing,
			envoytest.Outbound(t, "missing", "127.0.0.1", port[12], "never sent"),
			envoytest.Outbound(t, "empty", "127.0.0.1", port[13], "empty"),
		)
	})

	withTLS := func(port uint32, leaf *envoytest.Leaf, change func(*tls.Config)) func(*testing.T) {
		return func(t *testing.T) {
			config := ca.ClientTLS(leaf)
			if leaf != nil { // present it even where the server names other CAs
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf.TLS, nil }
			}
			if change != nil {
				change(config)
			}
			if _, err := say(t, port, config); err == nil {
				t.Error("the connection works")
			}
		}
	}
	plain := func(port uint32, text string) func(*testing.T) {
		return func(t *testing.T) {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // a closed connection fails below
			_, _ = c.Write([]byte(text))                        // may be reset already
			b := make([]byte, 5)
			if n, err := c.Read(b); err == nil && string(b[:n]) == "hello" {
				t.Error("the connection works")
			}
		}
	}
	for _, row := range []struct {
		name      string
		do        func(*testing.T)
		direction Direction
		cause     Cause
		byPeer    bool
		words     string
		peer      string
	}{
		{"inbound, a caller without a certificate", withTLS(port[0], nil, nil), Inbound, CauseNoCertificate, false, "peer did not provide required client certificate", ""},
		{"inbound, a certificate of a foreign CA", withTLS(port[0], foreign, nil), Inbound, CauseUnknownCA, false, "unable to get local issuer certificate", "spiffe://a.test/client"},
		{"inbound, an expired certificate", withTLS(port[0], expired, nil), Inbound, CauseExpired, false, "certificate has expired", "spiffe://a.test/old"},
		{"inbound, a certificate from tomorrow", withTLS(port[0], future, nil), Inbound, CauseNotYetValid, false, "certificate is not yet valid", "spiffe://a.test/early"},
		{"inbound, a revoked certificate", withTLS(port[0], revoked, nil), Inbound, CauseRevoked, false, "certificate revoked", "spiffe://a.test/revoked"},
		{"inbound, a certificate for servers alone", withTLS(port[0], serverOnly, nil), Inbound, CauseBadUsage, false, "purpose", "spiffe://a.test/server-only"},
		{"inbound, a certificate for mail alone", withTLS(port[0], mailOnly, nil), Inbound, CauseBadUsage, false, "purpose", "spiffe://a.test/mail"},
		{"inbound, a valid identity that may not call here", withTLS(port[1], client, nil), Inbound, CauseUnauthorized, false, "SAN matcher", "spiffe://a.test/client"},
		{"inbound, a certificate that names no workload", withTLS(port[1], person, nil), Inbound, CauseWrongSAN, false, "SAN matcher", "https://a.test/ada"},
		{"inbound, no CRL of the peer's CA", withTLS(port[11], client, nil), Inbound, CauseCRL, false, "CRL", "spiffe://a.test/client"},
		{"inbound, TLS 1.2", withTLS(port[0], client, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), Inbound, CauseVersion, false, "UNSUPPORTED_PROTOCOL", ""},
		{"inbound, plaintext HTTP", plain(port[0], "GET / HTTP/1.1\r\n\r\n"), Inbound, CausePlaintext, false, "HTTP_REQUEST", ""},
		{"inbound, plaintext of another kind", plain(port[0], "hello\r\n\r\n"), Inbound, CausePlaintext, false, "WRONG_VERSION_NUMBER", ""},
		{"inbound, plaintext where only TLS chains are", plain(port[2], "GET / HTTP/1.1\r\n\r\n"), Inbound, CausePlaintext, false, "ClientHelloNotDetected", ""},
		{"inbound, the program is not there", withTLS(port[3], client, nil), Inbound, CauseUnreachable, false, "Connection refused", "spiffe://a.test/client"},
		{"outbound, a server with another identity", plain(port[5], "hello"), Outbound, CauseWrongName, false, "SAN matcher", ""},
		{"outbound, a server of a foreign CA", plain(port[7], "hello"), Outbound, CauseUnknownCA, false, "unable to get local issuer certificate", ""},
		{"outbound, a revoked server", plain(port[8], "hello"), Outbound, CauseRevoked, false, "certificate revoked", ""},
		{"outbound, a server without TLS", plain(port[9], "hello"), Outbound, CauseProtocol, false, "UNEXPECTED_MESSAGE", ""},
		{"outbound, the server refuses our certificate", plain(port[6], "hello"), Outbound, CausePeerClosed, true, "its own log says why", ""},
		{"outbound, a destination that nothing names", plain(port[10], "hello"), Outbound, CauseUnnamed, false, "nothing names the destination 127.0.0.1:", ""},
		{"outbound, a cluster that is not there", plain(port[12], "hello"), Outbound, CauseUnnamed, false, "nothing names the destination", ""},
		{"outbound, a destination without endpoints", plain(port[13], "hello"), Outbound, CauseUnreachable, false, "nothing is declared to be there", ""},
		{"inbound, the caller refuses our certificate as of a foreign CA", plain(port[7], "hello"), Inbound, CauseUnknownCA, true, "ALERT_UNKNOWN_CA", ""},
		{"inbound, the caller refuses our certificate as another's", plain(port[5], "hello"), Inbound, CauseRejected, true, "ALERT_CERTIFICATE_UNKNOWN", ""},
		{"inbound, the caller refuses our certificate as revoked", plain(port[8], "hello"), Inbound, CauseRevoked, true, "ALERT_CERTIFICATE_REVOKED", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			told.clear()
			row.do(t)
			again := time.Now().Add(300 * time.Millisecond)
			f := told.next(t, string(row.direction)+" failure", func(f Failure) bool { return f.Direction == row.direction }, func() {
				// A refusal that overtakes the program's first byte is not told.
				if row.cause == CausePeerClosed && time.Now().After(again) {
					row.do(t)
					again = time.Now().Add(300 * time.Millisecond)
				}
			})
			if f.Cause != row.cause || f.ByPeer != row.byPeer {
				t.Errorf("cause %q by peer %v, want %q %v; reason: %s", f.Cause, f.ByPeer, row.cause, row.byPeer, f.Reason)
			}
			if !strings.Contains(f.Reason, row.words) {
				t.Errorf("reason %q lacks %q", f.Reason, row.words)
			}
			if row.peer != "" && f.PeerID != row.peer {
				t.Errorf("peer %q, want %q", f.PeerID, row.peer)
			}
		})
	}

	t.Run("a good connection names both ends while it is open", func(t *testing.T) {
		told.clear()
		var c net.Conn
		// A log that is flushed each second is not in time twice in a row; one
		// that is not may be late on a busy machine.
		for try, inTime := 0, 0; inTime < 2; try++ {
			if c != nil {
				c.Close()
			}
			envoytest.Eventually(t, "no connection is left", func() bool { return logs.Table.Len() == 0 })
			var err error
			if c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port[4])); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := echo(c); err != nil {
				t.Fatal(err)
			}
			envoytest.Eventually(t, "both directions are in the table", func() bool { return logs.Table.Len() == 2 })
			if d := time.Since(start); d < 450*time.Millisecond {
				inTime++
			} else if inTime = 0; try > 30 {
				t.Fatalf("the log came %v after the connection: it is buffered", d)
			}
		}
		defer c.Close()
		for _, row := range []struct {
			direction Direction
			id        string
			leaf      *envoytest.Leaf
		}{{Inbound, "spiffe://a.test/client", client}, {Outbound, id, server}} {
			list := logs.Table.Open(func(c *Connection) bool { return c.Direction == row.direction })
			if len(list) != 1 {
				t.Fatalf("%d %s connections", len(list), row.direction)
			}
			got := list[0]
			if got.PeerID != row.id || got.PeerSerial != Serial(row.leaf.Serial()) {
				t.Errorf("%s peer %s %s, want %s %s", row.direction, got.PeerID, got.PeerSerial, row.id, row.leaf.Serial())
			}
			if got.TLSVersion != "TLSv1.3" || got.Cipher == "" || got.Group != "X25519MLKEM768" {
				t.Errorf("%s TLS %q %q %q", row.direction, got.TLSVersion, got.Cipher, got.Group)
			}
			if !got.Pair().Local.IsValid() || !got.Pair().Remote.IsValid() || got.Ready <= 0 || got.Ready > 5*time.Second {
				t.Errorf("%s pair %v ready %v", row.direction, got.Pair(), got.Ready)
			}
		}
		in := logs.Table.Open(func(c *Connection) bool { return c.Direction == Inbound })[0]
		out := logs.Table.Open(func(c *Connection) bool { return c.Direction == Outbound })[0]
		if in.Pair().Local != out.Pair().Remote || in.Pair().Remote != out.Pair().Local {
			t.Errorf("the two ends of one connection differ: %v and %v", in.Pair(), out.Pair())
		}
		c.Close()
		envoytest.Eventually(t, "the closed connection leaves the table", func() bool { return logs.Table.Len() == 0 })
	})

	if n := testutil.ToFloat64(params.Metrics.handshakes.WithLabelValues("inbound", "refused", string(CauseRevoked))); n < 2 {
		t.Errorf("%v inbound handshakes refused as revoked, want 2 or more: a caller's and our own", n)
	}
	if got := logs.Failures(); len(got) == 0 {
		t.Error("no failure is kept for why")
	}
}
