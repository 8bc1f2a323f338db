package capture

import (
	"net"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

// A namespace where IPv6 is switched off is captured as well; sockets of IPv6
// cannot be bound there, which the package comment warns of.
func TestANamespaceWithoutIPv6IsCaptured(t *testing.T) {
	w := newWorld(t)
	run(t, "ip", "netns", "exec", w.here, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	mustInstall(t, Params{NetNS: path(w.here)})
	if err := in(t, w.here, func() error {
		l, err := net.Listen("tcp6", "[::1]:15001")
		if err == nil {
			l.Close()
		}
		return err
	}); err == nil {
		t.Error("[::1] can be bound without IPv6")
	}
	greet(t, listen(t, w.here, "tcp4", "127.0.0.1:15001"), "outbound")
	greet(t, listen(t, w.here, "tcp4", "0.0.0.0:15006"), "inbound")
	if line, err := dial(t, w.here, net.JoinHostPort(there4, "9000"), nil); line != "outbound 10.77.0.2:9000 <nil>" {
		t.Errorf("outbound: %q, %v", line, err)
	}
	if line, err := dial(t, w.there, net.JoinHostPort(here4, "8080"), nil); line != "inbound 10.77.0.1:8080 <nil>" {
		t.Errorf("inbound: %q, %v", line, err)
	}
	// Envoy refuses a listener of which one address cannot be bound.
	agent := envoytest.NewAgent(t, nil)
	l := envoytest.Outbound(t, "outbound", "127.0.0.1", 15101, "program")
	l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: envoytest.Address("::1", 15101)}}
	agent.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", 1, nil))
	agent.Set(envoytest.ListenerType, l, envoytest.Outbound(t, "any", "::", 15102, "program"))
	startEnvoy(t, w, agent)
	envoytest.Eventually(t, "Envoy refuses the listener on ::1", func() bool {
		return strings.Contains(strings.Join(agent.Nacks(), " "), "[::1]:15101")
	})
	if n := strings.Join(agent.Nacks(), " "); strings.Contains(n, "15102") {
		t.Errorf("Envoy refuses [::] too: %s", n)
	}
}
