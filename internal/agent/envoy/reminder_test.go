package envoy

import (
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

// reminding is a listener whose Envoy says every so often who is on a
// connection, as those that we compile.
func reminding(t *testing.T, l *listenerv3.Listener, every time.Duration) *listenerv3.Listener {
	t.Helper()
	f := l.FilterChains[0].Filters[0]
	p := &tcpproxyv3.TcpProxy{}
	if err := f.GetTypedConfig().UnmarshalTo(p); err != nil {
		t.Fatal(err)
	}
	p.AccessLogOptions.AccessLogFlushInterval = durationpb.New(every)
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: envoytest.Any(t, p)}
	return l
}

func TestAConnectionThatNobodyHeardOfIsNamedLater(t *testing.T) {
	ca := envoytest.NewCA(t, "ours")
	told := &seen{}
	logs := NewLogServer(told.params())
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	startEnvoy(t, logs, nil, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, reminding(t, envoytest.Inbound(t, "in", "127.0.0.1", port, "program",
			envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/server"), CA: ca}), 100*time.Millisecond))
	})
	client := ca.Issue("spiffe://a.test/client")
	conn, err := say(t, port, ca.ClientTLS(client))
	if err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the connection is told", func() bool { return logs.Table.Len() == 1 })
	logs.Table.Reset() // a new agent knows nothing
	told.clear()
	envoytest.Eventually(t, "the connection is told again", func() bool { return logs.Table.Len() == 1 })
	c := logs.Table.Open(nil)[0]
	if c.PeerID != "spiffe://a.test/client" || c.PeerSerial != Serial(client.Serial()) || c.Pair().Remote.String() != conn.LocalAddr().String() || c.Ready != 0 {
		t.Errorf("told %+v", c)
	}
	reminders := func() int {
		told.mu.Lock()
		defer told.mu.Unlock()
		return len(told.connections)
	}
	envoytest.Eventually(t, "whoever watches is told", func() bool { return reminders() == 1 })
	conn.Close()
	envoytest.Eventually(t, "its end is told", func() bool { return logs.Table.Len() == 0 })
	if n := reminders(); n != 1 {
		t.Errorf("one connection was new %d times", n)
	}
}
