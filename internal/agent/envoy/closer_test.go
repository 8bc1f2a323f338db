package envoy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

// helperEnv makes the test binary run helper instead of the tests.
const helperEnv = "LEGATION_TEST_HELPER"

func helper() int {
	switch os.Getenv(helperEnv) {
	case "parent": // starts an Envoy as its own user and ends connections on request
		return parentHelper()
	case "envoy": // starts an Envoy and waits to be killed
		return strandHelper()
	}
	return 2
}

type closeRig struct {
	*rig
	ca   *envoytest.CA
	port uint32
	logs *LogServer
}

func newCloseRig(t *testing.T, address string) *closeRig {
	t.Helper()
	r := &closeRig{ca: envoytest.NewCA(t, "ours"), port: envoytest.Port(t), logs: NewLogServer(LogServerParams{})}
	back := envoytest.Echo(t, "127.0.0.1:0")
	server := r.ca.Issue("spiffe://a.test/server")
	r.rig = startEnvoy(t, r.logs, nil, func(a *envoytest.Agent) {
		a.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
		a.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", address, r.port, "program", envoytest.Peer{Leaf: server, CA: r.ca}))
	})
	return r
}

func (r *closeRig) connect(t *testing.T, id string) *tls.Conn {
	t.Helper()
	c, err := say(t, r.port, r.ca.ClientTLS(r.ca.Issue(id)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *closeRig) pairs(t *testing.T, id string, n int) []Pair {
	t.Helper()
	var out []Pair
	envoytest.Eventually(t, "the table knows "+id, func() bool {
		out = nil
		for _, c := range r.logs.Table.Open(func(c *Connection) bool { return c.PeerID == id }) {
			out = append(out, c.Pair())
		}
		return len(out) == n
	})
	return out
}

func ended(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	switch {
	case err == nil:
		return errors.New("a byte came")
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("still open after 5 s")
	}
	return nil // EOF, or a reset
}

// A35: revocation reaches connections that are open already.
func TestA35OnlyTheRevokedPeersConnectionsEnd(t *testing.T) {
	for _, row := range []struct{ name, address string }{
		{"a listener on IPv4", "127.0.0.1"},
		{"a listener on [::] that takes IPv4 too", "::"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newCloseRig(t, row.address)
			revoked := []*tls.Conn{r.connect(t, "spiffe://a.test/revoked"), r.connect(t, "spiffe://a.test/revoked")}
			bystander := r.connect(t, "spiffe://a.test/bystander")
			pairs := r.pairs(t, "spiffe://a.test/revoked", 2)
			r.pairs(t, "spiffe://a.test/bystander", 1)
			start := time.Now()
			closed, failures := CloseConnections(t.Context(), r.proc.PID(), pairs)
			took := time.Since(start)
			if closed != 2 || len(failures) > 0 {
				t.Fatalf("closed %d, failures %q", closed, failures)
			}
			for _, c := range revoked {
				if err := ended(c); err != nil {
					t.Errorf("revoked peer: %v", err)
				}
			}
			t.Logf("ended in %v", took)
			if closed, failures := closeByTable(r.proc.PID(), pairs, errGone); closed != 0 || len(failures) > 0 {
				t.Errorf("by the table, what is gone already: closed %d, failures %q", closed, failures)
			}
			if took > 5*time.Second { // of milliseconds
				t.Errorf("ending took %v", took)
			}
			if err := echo(bystander); err != nil {
				t.Errorf("bystander: %v", err)
			}
			envoytest.Eventually(t, "the table forgets the ended", func() bool { return r.logs.Table.Len() == 1 })
			if closed, failures := CloseConnections(t.Context(), r.proc.PID(), pairs); closed != 0 || len(failures) > 0 {
				t.Errorf("what is gone already: closed %d, failures %q", closed, failures)
			}
		})
	}
}

// closeUnknown is what a session's parent does in two steps.
func closeUnknown(t *testing.T, pid int, ports []uint16, keep []Pair) (int, []string) {
	t.Helper()
	accepted, err := Accepted(pid, ports)
	if err != nil {
		t.Fatal(err)
	}
	return CloseConnections(t.Context(), pid, Unnamed(accepted, keep))
}

func TestUnknownInboundConnectionsEnd(t *testing.T) {
	r := newCloseRig(t, "127.0.0.1")
	known, unknown := r.connect(t, "spiffe://a.test/known"), r.connect(t, "spiffe://a.test/forgotten")
	keep := r.pairs(t, "spiffe://a.test/known", 1)
	silent, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port)) // never says who it is
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	envoytest.Eventually(t, "Envoy accepted the silent one", func() bool {
		stats, err := r.proc.Stats(t.Context(), `^listener\..*\.downstream_cx_active$`)
		return err == nil && stats[fmt.Sprintf("listener.127.0.0.1_%d.downstream_cx_active", r.port)] == 3
	})
	closed, failures := closeUnknown(t, r.proc.PID(), []uint16{uint16(r.port)}, keep)
	if closed != 2 || len(failures) > 0 {
		t.Fatalf("closed %d, failures %q, want 2", closed, failures)
	}
	for name, c := range map[string]net.Conn{"forgotten": unknown, "silent": silent} {
		if err := ended(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := echo(known); err != nil {
		t.Errorf("known: %v", err)
	}
	// It still accepts.
	r.connect(t, "spiffe://a.test/next")
}

func TestTheKernelEndsASocketByItsAddresses(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::"} {
		r := newCloseRig(t, address)
		gone, stays := r.connect(t, "spiffe://a.test/gone"), r.connect(t, "spiffe://a.test/stays")
		pair := r.pairs(t, "spiffe://a.test/gone", 1)[0]
		d := newDestroyer(r.proc.PID())
		defer d.close()
		if _, err := d.destroy(pair); err != nil {
			t.Fatal(err)
		}
		if err := ended(gone); err != nil {
			t.Error(err)
		}
		envoytest.Eventually(t, "Envoy closed its side", func() bool { return r.logs.Table.Len() == 1 })
		if err := echo(stays); err != nil {
			t.Errorf("bystander: %v", err)
		}
		if _, err := d.destroy(pair); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("a second time: %v, want ENOENT", err)
		}
		r.connect(t, "spiffe://a.test/next") // the listener lives
	}
}

// Without root the parent of an Envoy with the same uid can end connections;
// a stranger cannot.
func TestWithoutRootEnvoysParentEndsConnections(t *testing.T) {
	logs := NewLogServer(LogServerParams{})
	ca := envoytest.NewCA(t, "ours")
	back, port := envoytest.Echo(t, "127.0.0.1:0"), envoytest.Port(t)
	agent := envoytest.NewAgent(t, logs)
	agent.Set(envoytest.ClusterType, envoytest.Cluster(t, "program", "127.0.0.1", back, nil))
	agent.Set(envoytest.ListenerType, envoytest.Inbound(t, "in", "127.0.0.1", port, "program",
		envoytest.Peer{Leaf: ca.Issue("spiffe://a.test/server"), CA: ca}))
	h := startHelper(t, "parent", agent, nobody)
	r := &closeRig{ca: ca, port: port, logs: logs}
	revoked, bystander := r.connect(t, "spiffe://a.test/revoked"), r.connect(t, "spiffe://a.test/bystander")
	pair := r.pairs(t, "spiffe://a.test/revoked", 1)[0]

	if answer := h.ask(t, pair); !strings.HasPrefix(answer, "1 ") {
		t.Fatalf("the parent: %s", answer)
	}
	if err := ended(revoked); err != nil {
		t.Error(err)
	}
	if err := echo(bystander); err != nil {
		t.Errorf("bystander: %v", err)
	}
}

const nobody = 65534

// helperProcess is the test binary as another user.
type helperProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
	pid int // its Envoy's
}

func startHelper(t *testing.T, kind string, agent *envoytest.Agent, uid uint32) *helperProcess {
	t.Helper()
	dir, err := os.MkdirTemp("", "lgt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, err := range []error{os.Chown(dir, int(uid), -1), os.Chown(agent.Socket, int(uid), -1),
		os.Chmod(strings.TrimSuffix(agent.Socket, "/agent.sock"), 0o711)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The test's own binary lies where other users cannot reach it.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/test", self, 0o755); err != nil {
		t.Fatal(err)
	}
	envoy, err := os.Open(envoytest.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer envoy.Close()
	copied, err := os.OpenFile(dir+"/envoy", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(copied, envoy); err != nil {
		t.Fatal(err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}
	h := &helperProcess{cmd: exec.Command(dir + "/test")}
	h.cmd.Env = []string{helperEnv + "=" + kind, "SOCKET=" + agent.Socket, "DIR=" + dir, "BINARY=" + dir + "/envoy"}
	h.cmd.Dir = dir
	h.cmd.Stderr = t.Output()
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = json.NewDecoder(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.in.Close()
		_ = h.cmd.Wait() // killed in some tests
	})
	if err := h.out.Decode(&h.pid); err != nil {
		t.Fatalf("the helper does not start: %v", err)
	}
	return h
}

func (h *helperProcess) ask(t *testing.T, p Pair) string {
	t.Helper()
	if _, err := fmt.Fprintf(h.in, "%s\n", p); err != nil {
		t.Fatal(err)
	}
	var answer string
	if err := h.out.Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

// strand runs an Envoy as the helper's own user.
func strand(ctx context.Context) (*Process, chan error, error) {
	admin := os.Getenv("DIR") + "/admin.sock"
	bootstrap, err := Bootstrap(BootstrapParams{NodeID: "helper", Socket: os.Getenv("SOCKET"), AdminSocket: admin})
	if err != nil {
		return nil, nil, err
	}
	p, err := NewProcess(ProcessParams{Binary: os.Getenv("BINARY"), Bootstrap: bootstrap, AdminSocket: admin, Concurrency: 1})
	if err != nil {
		return nil, nil, err
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return p, done, p.WaitLive(wait)
}

func parentHelper() int {
	ctx, cancel := context.WithCancel(context.Background())
	p, done, err := strand(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		cancel()
		return 1
	}
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(p.PID())
	for {
		var local, remote string
		if _, err := fmt.Scanln(&local, &remote); err != nil {
			cancel()
			<-done
			return 0
		}
		pair, err := ParsePair(local, remote)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			cancel()
			return 1
		}
		n, failures := CloseConnections(ctx, p.PID(), []Pair{pair})
		_ = out.Encode(strconv.Itoa(n) + " " + strings.Join(failures, "; "))
	}
}

func strandHelper() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p, _, err := strand(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(p.PID())
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}
