package capture

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	accesslogcfgv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

func markOption() []*corev3.SocketOption {
	return []*corev3.SocketOption{{Level: unix.SOL_SOCKET, Name: unix.SO_MARK,
		Value: &corev3.SocketOption_IntValue{IntValue: DefaultMark}, State: corev3.SocketOption_STATE_PREBIND}}
}

// transparent makes a listener what the package comment asks for.
func transparent(t *testing.T, l *listenerv3.Listener, log string) *listenerv3.Listener {
	l.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "envoy.filters.listener.original_dst",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: envoytest.Any(t, &originaldstv3.OriginalDst{})}}}
	l.SocketOptions = markOption()
	l.AccessLog = []*accesslogcfgv3.AccessLog{envoytest.UnmatchedLog(t, log)}
	return l
}

func markedCluster(c *clusterv3.Cluster) *clusterv3.Cluster {
	c.UpstreamBindConfig = &corev3.BindConfig{SocketOptions: markOption()}
	return c
}

// startEnvoy runs an Envoy in the program's namespace until the test ends.
func startEnvoy(t *testing.T, w *world, agent *envoytest.Agent) *envoy.Process {
	t.Helper()
	admin := filepath.Join(filepath.Dir(agent.Socket), "admin.sock")
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapParams{NodeID: "test", Socket: agent.Socket, AdminSocket: admin})
	if err != nil {
		t.Fatal(err)
	}
	proc, err := envoy.NewProcess(envoy.ProcessParams{Binary: envoytest.Binary(t), Bootstrap: bootstrap, AdminSocket: admin, Concurrency: 1, NetNS: path(w.here)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- proc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return proc
}

// A real Envoy behind the rules, its listeners marked: the destinations it
// finds, and the sockets that the agent would end.
func TestEnvoyFindsTheDestinationOfCapturedConnections(t *testing.T) {
	w := newWorld(t)
	logs := envoy.NewLogServer(envoy.LogServerParams{})
	agent := envoytest.NewAgent(t, logs)
	ca := envoytest.NewCA(t, "ours")

	for _, a := range []string{there4, there6} {
		envoytest.ServeEcho(t, listen(t, w.there, "tcp", net.JoinHostPort(a, "9000")))
	}
	envoytest.ServeEcho(t, listen(t, w.here, "tcp", "127.0.0.1:8080"))

	outbound := transparent(t, envoytest.Outbound(t, "outbound", "127.0.0.1", DefaultOutboundPort, "world4"), accesslog.OutboundListener)
	outbound.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: envoytest.Address("::1", DefaultOutboundPort)}}
	six := envoytest.Outbound(t, "x", "127.0.0.1", 1, "world6").FilterChains[0]
	for chain, ip := range map[*listenerv3.FilterChain]string{outbound.FilterChains[0]: there4, six: there6} {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(9000),
			PrefixRanges: []*corev3.CidrRange{{AddressPrefix: ip, PrefixLen: wrapperspb.UInt32(uint32(netip.MustParseAddr(ip).BitLen()))}}}
	}
	outbound.FilterChains = append(outbound.FilterChains, six)
	inbound := transparent(t, envoytest.Inbound(t, "inbound", "::", DefaultInboundPort, "program",
		envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/program"), CA: ca}), accesslog.InboundListener)
	inbound.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(8080)}
	agent.Set(envoytest.ClusterType,
		markedCluster(envoytest.Cluster(t, "world4", there4, 9000, nil)),
		markedCluster(envoytest.Cluster(t, "world6", there6, 9000, nil)),
		markedCluster(envoytest.Cluster(t, "program", "127.0.0.1", 8080, nil)))
	agent.Set(envoytest.ListenerType, outbound, inbound)

	rules := mustInstall(t, Params{NetNS: path(w.here), MarkedListeners: true})
	proc := startEnvoy(t, w, agent)
	wait, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := proc.WaitLive(wait); err != nil {
		t.Fatal(err, agent.Nacks())
	}

	connect := func(ns, to string, config *tls.Config) net.Conn {
		t.Helper()
		var c net.Conn
		err := in(t, ns, func() (err error) {
			d := net.Dialer{Timeout: 30 * time.Second}
			if config != nil {
				c, err = tls.DialWithDialer(&d, "tcp", to, config)
			} else {
				c, err = d.Dial("tcp", to)
			}
			return err
		})
		if err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	echo := func(c net.Conn) error {
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		line, err := firstLine(c)
		if line != "hello" && err == nil {
			err = fmt.Errorf("echo says %q", line)
		}
		return err
	}
	find := func(direction envoy.Direction, destination string) *envoy.Connection {
		t.Helper()
		var found *envoy.Connection
		envoytest.Eventually(t, string(direction)+" to "+destination+" is in the table", func() bool {
			list := logs.Table.Open(func(c *envoy.Connection) bool {
				return c.Direction == direction && c.Destination.String() == destination
			})
			if len(list) > 0 {
				found = list[0]
			}
			return found != nil
		})
		return found
	}

	for _, ip := range []string{there4, there6} {
		to := net.JoinHostPort(ip, "9000")
		if err := echo(connect(w.here, to, nil)); err != nil {
			t.Errorf("outbound to %s: %v", to, err)
		}
		c := find(envoy.Outbound, to)
		if want := netip.MustParseAddr(ip).Is4(); c.Local.Addr().Is4() != want || c.Local.Port() != DefaultOutboundPort || !c.Local.Addr().IsLoopback() {
			t.Errorf("outbound to %s arrives at %s", to, c.Local)
		}
		if c.UpstreamRemote.String() != to {
			t.Errorf("outbound to %s goes to %s", to, c.UpstreamRemote)
		}
	}
	peer := ca.ClientTLS(ca.Issue("spiffe://a.test/peer"))
	bystander := connect(w.there, net.JoinHostPort(here4, "8080"), ca.ClientTLS(ca.Issue("spiffe://a.test/bystander")))
	if err := echo(bystander); err != nil {
		t.Fatal(err)
	}
	find(envoy.Inbound, net.JoinHostPort(here4, "8080"))
	for _, ip := range []string{here4, here6} {
		to := net.JoinHostPort(ip, "8080")
		conn := connect(w.there, to, peer)
		if err := echo(conn); err != nil {
			t.Errorf("inbound to %s: %v", to, err)
		}
		var c *envoy.Connection
		envoytest.Eventually(t, "the peer is in the table", func() bool {
			list := logs.Table.Open(func(c *envoy.Connection) bool {
				return c.PeerID == "spiffe://a.test/peer" && c.Destination.String() == to
			})
			if len(list) == 1 {
				c = list[0]
			}
			return c != nil
		})
		if want := net.JoinHostPort(ip, fmt.Sprint(DefaultInboundPort)); c.Local.String() != want {
			t.Errorf("inbound to %s is the socket %s, want %s", to, c.Local, want)
		}
		// A35, from outside the namespace: the socket's own addresses are
		// what ends it.
		if n, failures := envoy.CloseConnections(t.Context(), proc.PID(), []envoy.Pair{c.Pair()}); n != 1 || len(failures) > 0 {
			t.Errorf("inbound to %s: closed %d, failures %q", to, n, failures)
		}
		if err := echo(conn); err == nil {
			t.Errorf("inbound to %s goes on", to)
		}
	}
	if err := echo(bystander); err != nil {
		t.Errorf("bystander: %v", err)
	}

	// What nothing names is refused and told with its destination.
	to := net.JoinHostPort(there4, "9001")
	if err := echo(connect(w.here, to, nil)); err == nil {
		t.Error("an unnamed destination works")
	}
	envoytest.Eventually(t, "the unnamed destination is told", func() bool {
		for _, f := range logs.Failures() {
			if f.Cause == envoy.CauseUnnamed && f.Destination == to && strings.Contains(f.Reason, to) {
				return true
			}
		}
		return false
	})
	// Plaintext from outside to a captured port.
	if err := echo(connect(w.there, net.JoinHostPort(here6, "8080"), nil)); err == nil {
		t.Error("plaintext works")
	}
	envoytest.Eventually(t, "plaintext is told", func() bool {
		for _, f := range logs.Failures() {
			if f.Cause == envoy.CausePlaintext && f.Direction == envoy.Inbound {
				return true
			}
		}
		return false
	})
	if c, err := rules.Counters(); err != nil || c[OutboundCaptured].Packets < 3 || c[InboundCaptured].Packets < 4 || c[UnmarkedRefused].Packets != 0 {
		t.Errorf("counters %v, %v", c, err)
	}
}
