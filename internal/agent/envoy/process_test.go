package envoy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
	"github.com/legation-io/legation/internal/fault"
)

func alive(pid int) bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(state, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z'
}

func TestAnEnvoyThatDiesComesBack(t *testing.T) {
	var mu sync.Mutex
	var pids []int
	ca := envoytest.NewCA(t, "ours")
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	r := startEnvoy(t, nil, func(p *ProcessParams) {
		p.OnStart = func(pid int) { mu.Lock(); pids = append(pids, pid); mu.Unlock() }
	}, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", "127.0.0.1", port, "program",
			envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/server"), CA: ca}))
	})
	client := ca.ClientTLS(ca.Issue("spiffe://a.test/client"))
	first := r.proc.PID()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "another Envoy serves", func() bool {
		if r.proc.PID() == first || r.proc.PID() == 0 {
			return false
		}
		_, err := say(t, port, client)
		return err == nil
	})
	mu.Lock()
	defer mu.Unlock()
	if len(pids) != 2 || pids[0] != first || pids[1] != r.proc.PID() {
		t.Errorf("OnStart was told %v, first %d, now %d", pids, first, r.proc.PID())
	}
}

func TestStopEndsTheEnvoyAndItsAdminIsPrivate(t *testing.T) {
	agent := envoytest.NewAgent(t, nil)
	admin := filepath.Join(filepath.Dir(agent.Socket), "admin.sock")
	bootstrap, err := Bootstrap(BootstrapParams{NodeID: "test", Socket: agent.Socket, AdminSocket: admin})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProcess(ProcessParams{Binary: envoytest.Binary(t), Bootstrap: bootstrap, AdminSocket: admin, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if err := p.WaitLive(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(admin)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("A24: the admin socket's mode is %o, want 600", info.Mode().Perm())
	}
	pid := p.PID()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if alive(pid) || p.PID() != 0 {
		t.Error("Envoy lives on after Run returned")
	}
}

// An Envoy whose parent is gone would serve identities that nobody can take
// away any more.
func TestEnvoyDoesNotOutliveItsParent(t *testing.T) {
	agent := envoytest.NewAgent(t, nil)
	h := startHelper(t, "envoy", agent, nobody)
	if !alive(h.pid) {
		t.Fatal("the helper's Envoy is not there")
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "Envoy died with its parent", func() bool { return !alive(h.pid) })
}

func TestEnvoyWaitsForItsListeners(t *testing.T) {
	agent := envoytest.NewAgent(t, nil)
	agent.Silent = true
	admin := filepath.Join(filepath.Dir(agent.Socket), "admin.sock")
	bootstrap, err := Bootstrap(BootstrapParams{NodeID: "test", Socket: agent.Socket, AdminSocket: admin})
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewProcess(ProcessParams{Binary: envoytest.Binary(t), Bootstrap: bootstrap, AdminSocket: admin, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	envoytest.Eventually(t, "Envoy asks", func() bool { return agent.Asked() > 0 })
	short, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if err := p.WaitLive(short); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Envoy without listeners: %v, want not LIVE", err)
	}
}

func TestMarkingIsForTheMarkedEnvoyAlone(t *testing.T) {
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	run := func(mark bool) error {
		r := startEnvoy(t, nil, func(p *ProcessParams) {
			dir := filepath.Dir(p.AdminSocket)
			if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(filepath.Join(dir, "agent.sock"), 0o777)); err != nil {
				t.Fatal(err)
			}
			closed := filepath.Join(t.TempDir(), "closed") // as root's home is
			if err := os.Mkdir(closed, 0o700); err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(closed, "envoy")
			if err := os.Link(p.Binary, copied); err != nil {
				body, err := os.ReadFile(p.Binary)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(copied, body, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			p.Binary = copied
			p.User, p.Mark = &User{UID: nobody, GID: nobody}, mark
		}, func(a *envoytest.Agent) {
			c := envoytest.Cluster(t, "program", "127.0.0.1", back, nil)
			c.UpstreamBindConfig = &corev3.BindConfig{SocketOptions: []*corev3.SocketOption{{
				Level: syscall.SOL_SOCKET, Name: syscall.SO_MARK, Value: &corev3.SocketOption_IntValue{IntValue: 0x539}, State: corev3.SocketOption_STATE_PREBIND}}}
			a.Set(envoytest.ClusterType, c)
			a.Set(envoytest.ListenerType, envoytest.Outbound(t, "out", "127.0.0.1", port, "program"))
		})
		caps, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.proc.PID()))
		if err != nil {
			t.Fatal(err)
		}
		want := "CapEff:\t0000000000000000"
		if mark {
			want = fmt.Sprintf("CapEff:\t%016x", 1<<MarkCapability())
		}
		if !strings.Contains(string(caps), want) {
			t.Errorf("mark %v: capabilities are not %s", mark, want)
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return echo(c)
	}
	if err := run(true); err != nil {
		t.Errorf("with the capability: %v", err)
	}
	port = envoytest.Port(t)
	if err := run(false); err == nil {
		t.Error("without the capability Envoy could mark its connections")
	}
}

func TestABadBootstrapIsToldAtOnceWithEnvoysWords(t *testing.T) {
	dir := t.TempDir()
	p, err := NewProcess(ProcessParams{Binary: envoytest.Binary(t), Bootstrap: []byte(`{"node": {"id": "x"}, "no_such_field": 1}`), AdminSocket: dir + "/a.sock"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no_such_field") {
		t.Errorf("error %v, want one that names no_such_field", err)
	}
	p.p.Binary = dir + "/none"
	if err := p.Run(t.Context()); !errors.Is(err, errStart) {
		t.Errorf("error %v, want that it cannot be started", err)
	}
}

func TestDrainWaitsForInboundConnections(t *testing.T) {
	ca := envoytest.NewCA(t, "ours")
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	r := startEnvoy(t, nil, nil, func(a *envoytest.Agent) {
		in := envoytest.Inbound(t, "in", "127.0.0.1", port, "program", envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/server"), CA: ca})
		in.TrafficDirection, in.StatPrefix = corev3.TrafficDirection_INBOUND, accesslog.StatInbound
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, in)
	})
	client := ca.ClientTLS(ca.Issue("spiffe://a.test/client"))
	c, err := say(t, port, client)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := r.proc.Drain(short); err == nil || !strings.Contains(err.Error(), "1 inbound") {
		t.Errorf("drain with an open connection: %v", err)
	}
	if err := echo(c); err != nil {
		t.Errorf("the open connection was cut: %v", err)
	}
	if _, err := say(t, port, client); err == nil {
		t.Error("a draining Envoy accepts")
	}
	drained := make(chan error, 1)
	go func() { drained <- r.proc.Drain(t.Context()) }()
	c.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

func TestWhatIsServedAndCounted(t *testing.T) {
	ca := envoytest.NewCA(t, "ours")
	leaf := ca.Issue("spiffe://a.test/server")
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	r := startEnvoy(t, nil, nil, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", "127.0.0.1", port, "program", envoytest.Peer{Leaf: leaf, CA: ca}))
	})
	served, err := r.proc.ServedCertificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(served) != 1 || served[0].Serial != Serial(leaf.Serial()) || len(served[0].URIs) != 1 || served[0].URIs[0] != "spiffe://a.test/server" ||
		!served[0].NotAfter.Equal(leaf.Cert.NotAfter) {
		t.Errorf("served %+v, want the leaf %s until %v", served, leaf.Serial(), leaf.Cert.NotAfter)
	}
	if _, err := say(t, port, ca.ClientTLS(ca.Issue("spiffe://a.test/client"))); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.proc.Prometheus(t.Context(), "ssl.handshake", &b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "envoy_listener_ssl_handshake") {
		t.Errorf("no handshakes in:\n%s", b.String())
	}
	if _, err := r.proc.Stats(t.Context(), "("); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a bad filter: %v", err)
	}
}

// An agent that was killed and is back finds its Envoy again: new
// configuration arrives, new connections are told, and those from before are
// the unknown ones that a revocation ends.
func TestEnvoyFindsItsAgentAgain(t *testing.T) {
	ca := envoytest.NewCA(t, "ours")
	logs := NewLogServer(LogServerParams{})
	back, port, second := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t), envoytest.Port(t)
	peer := envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/server"), CA: ca}
	r := startEnvoy(t, logs, nil, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", "127.0.0.1", port, "program", peer))
	})
	client := ca.ClientTLS(ca.Issue("spiffe://a.test/client"))
	before, err := say(t, port, client)
	if err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the connection is told", func() bool { return logs.Table.Len() == 1 })

	r.agent.Stop()
	logs.Table.Reset() // a new agent knows nothing
	if err := echo(before); err != nil {
		t.Errorf("a connection while the agent is away: %v", err)
	}
	during, err := say(t, port, client)
	if err != nil {
		t.Fatalf("a new connection while the agent is away: %v", err)
	}
	r.agent.Start()
	start := time.Now()
	r.agent.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", "127.0.0.1", port, "program", peer),
		envoytest.Inbound(t, "second", "127.0.0.1", second, "program", peer))
	var after *tls.Conn
	envoytest.Eventually(t, "the new listener serves", func() bool {
		after, err = say(t, second, client)
		return err == nil
	})
	t.Logf("new configuration %v after the agent was back", time.Since(start).Round(time.Millisecond))
	fresh, err := say(t, port, client)
	if err != nil {
		t.Fatal(err)
	}
	var keep []Pair
	envoytest.Eventually(t, "new connections are told", func() bool {
		keep = nil
		for _, c := range logs.Table.Open(nil) {
			keep = append(keep, c.Pair())
		}
		return len(keep) >= 2
	})
	if n, failures := closeUnknown(t, r.proc.PID(), []uint16{uint16(port), uint16(second)}, keep); n < 1 || len(failures) > 0 {
		t.Errorf("closed %d, failures %q", n, failures)
	}
	if err := ended(before); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	for name, c := range map[string]net.Conn{"after": after, "fresh": fresh} {
		if err := echo(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_ = during // told late or not at all: either kept or ended
}
