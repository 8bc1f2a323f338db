package session

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/cutoff"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

// office is an agent's sessions over the real link to a control plane. This
// process is the parent of each session's program and Envoy.
type office struct {
	t       *testing.T
	plane   *nodetest.Plane
	server  *Server
	engine  *distribute.Engine
	manager *svid.Manager
	socket  string
	stop    func() // of the gRPC server
}

// patience is how long a test waits for what must come.
const patience = time.Minute

const web = "spiffe://example.org/ns/default/sa/web"

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, plane: nodetest.New(t)}
	p := o.plane
	p.SetTrust(node.ScopeAll, "crl", "default", p.Authority.CRL(t, 1))
	p.SetTrust(node.ScopeAll, "heartbeat", "default", p.Authority.Heartbeat(t, 1))
	p.SetEntry("node-1", entry("web", web))
	p.SetCompile(listeners("in"))

	dir, err := os.MkdirTemp("", "ls")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	log := slog.New(slog.DiscardHandler)
	link := upstream.New(upstream.Params{
		Servers: []string{p.Address}, TrustDomain: p.TrustDomain, BundleHash: p.Authority.BundleHash(),
		Prover: attestnode.Proof(attestnode.JoinToken, []byte(p.Token("node-1"))), Log: log,
		Snapshot: func() *nodev1.ReportRequest { return o.server.Snapshot() },
		OnConfig: func(subject string, u upstream.ConfigUpdate) error {
			var refusal error
			if u.Refusal != nil {
				refusal = fault.New(fault.Kind(u.Refusal.Kind), "%s", u.Refusal.Message)
			}
			o.server.OnConfig(subject, u.Changes, refusal)
			return nil
		},
	})
	o.manager = svid.New(svid.Params{Views: link, Signer: link, HoldOff: 10 * time.Second, Log: log}) // a busy machine signs slowly
	attestor := workload.NewAttestor(workload.Params{Want: o.manager.Want})
	o.engine = distribute.New(distribute.Params{Clock: clock.System, OnStatus: func(list []distribute.Status) { o.server.OnStatus(list) }})
	o.server = New(Params{
		TrustDomain: "example.org", RunDir: filepath.Join(dir, "run"), Manager: o.manager, Attestor: attestor, Views: link, Link: link,
		Engine: o.engine, MaxSessions: 3, Clock: clock.System, Log: log,
	})
	must(t, o.server.Sweep())
	for _, run := range []func(context.Context) error{link.Run, o.manager.Run, attestor.Run} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	o.socket = filepath.Join(dir, "agent.sock")
	raw, err := net.Listen("unix", o.socket)
	must(t, err)
	l := cutoff.New(raw)
	g := grpc.NewServer(grpc.WaitForHandlers(true), grpc.Creds(workload.NewCredentials(attestor)))
	localv1.RegisterSessionsServer(g, o.server)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	o.stop = sync.OnceFunc(func() { l.Cut(); g.Stop(); <-served; o.server.Wait() })
	t.Cleanup(o.stop)
	nodetest.Eventually(t, "the link is up", func() bool { v, _ := link.View(); return v.Synced && v.Connected && len(v.Entries) > 0 })
	return o
}

// empty reports whether there is no session, not even one that ends.
func (o *office) empty() bool {
	o.server.mu.Lock()
	defer o.server.mu.Unlock()
	return len(o.server.sessions) == 0
}

// matching is how many identities a program may choose from.
func (o *office) matching() int {
	return len(o.manager.Match([]workload.Selector{"unix:uid:0"}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entry(name, id string) *nodev1.Entry {
	return &nodev1.Entry{Name: "default/" + name, Namespace: "default", SpiffeId: id, Selectors: []string{"unix:uid:0"}}
}

func listeners(names ...string) func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
	return func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
		var list []*distribute.Resource
		for _, n := range names {
			body, err := proto.Marshal(&listenerv3.Listener{Name: n})
			if err != nil {
				return nil, err
			}
			list = append(list, distribute.NewResource(typeListener, n, body))
		}
		return list, nil
	}
}

// program is a process that waits to become /bin/true, which it has open.
func (o *office) program() *exec.Cmd {
	o.t.Helper()
	file, err := os.Open("/bin/true")
	must(o.t, err)
	defer file.Close()
	c := exec.Command("cat")
	in, err := c.StdinPipe()
	must(o.t, err)
	c.ExtraFiles = []*os.File{file}
	must(o.t, c.Start())
	o.t.Cleanup(func() { in.Close(); _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

func startOf(program *exec.Cmd) *localv1.SessionStart {
	return &localv1.SessionStart{
		ChildPid: int32(program.Process.Pid), ExecFd: 3, ExecPath: "/bin/true", Mode: nodev1.Mode_MODE_EXPLICIT,
		Inbound: []*nodev1.Inbound{{Listen: "127.0.0.1:15443", App: "127.0.0.1:8080"}},
	}
}

// parent is this process's side of a session.
type parent struct {
	t      *testing.T
	stream localv1.Sessions_OpenClient
	leave  func()
	heard  chan *localv1.SessionResponse
	ended  chan error
}

// open begins a session; it may be refused.
func (o *office) open(first *localv1.SessionRequest) *parent {
	o.t.Helper()
	conn, err := grpc.NewClient("unix://"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(o.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := localv1.NewSessionsClient(conn).Open(ctx)
	must(o.t, err)
	must(o.t, stream.Send(first))
	p := &parent{t: o.t, stream: stream, heard: make(chan *localv1.SessionResponse), ended: make(chan error, 1)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			m, err := stream.Recv()
			if err != nil {
				p.ended <- err
				return
			}
			select {
			case p.heard <- m:
			case <-ctx.Done():
			}
		}
	}()
	p.leave = sync.OnceFunc(func() { cancel(); conn.Close(); <-read })
	o.t.Cleanup(p.leave)
	return p
}

// next is the next message that is wanted; others are passed over.
func next[T any](p *parent, what string, want func(*localv1.SessionResponse) T, ok func(T) bool) T {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case m := <-p.heard:
			if v := want(m); ok(v) {
				return v
			}
		case err := <-p.ended:
			p.t.Fatalf("the session ended before %s: %v", what, err)
		case <-timeout:
			p.t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (p *parent) attested() *localv1.Attested {
	p.t.Helper()
	return next(p, "it was attested", (*localv1.SessionResponse).GetAttested, func(a *localv1.Attested) bool { return a != nil })
}

func (p *parent) readiness() {
	p.t.Helper()
	next(p, "it was ready", (*localv1.SessionResponse).GetReady, func(r *localv1.Ready) bool { return r != nil })
}

func (p *parent) warned(text string) {
	p.t.Helper()
	next(p, "the warning "+text, (*localv1.SessionResponse).GetWarning, func(w string) bool { return strings.Contains(w, text) })
}

func (p *parent) told() *localv1.CloseSockets {
	p.t.Helper()
	return next(p, "connections to end", (*localv1.SessionResponse).GetClose, func(c *localv1.CloseSockets) bool { return c != nil })
}

// end is why the session ended.
func (p *parent) end() error {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case <-p.heard:
		case err := <-p.ended:
			return err
		case <-timeout:
			p.t.Fatal("not within a minute: the session's end")
		}
	}
}

// proxy is a child of this process that speaks as an Envoy.
type proxy struct {
	pid int32
	in  io.Writer

	mu   sync.Mutex
	said []string
}

func (o *office) envoy(socket string, uid uint32, refuses string) *proxy {
	o.t.Helper()
	var c *exec.Cmd
	if uid == 0 {
		c = exec.Command("/proc/self/exe")
	} else {
		c = exec.Command(forEverybody(o.t))
	}
	c.Env = append(os.Environ(), "SESSION_TEST_ENVOY="+socket, "SESSION_TEST_REFUSES="+refuses)
	if uid != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := c.StdinPipe()
	must(o.t, err)
	out, err := c.StdoutPipe()
	must(o.t, err)
	must(o.t, c.Start())
	p := &proxy{pid: int32(c.Process.Pid), in: in}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			text, _ := url.QueryUnescape(lines.Text())
			p.mu.Lock()
			p.said = append(p.said, text)
			p.mu.Unlock()
		}
	}()
	o.t.Cleanup(func() { _ = c.Process.Kill(); <-read; _ = c.Wait() })
	return p
}

// forEverybody is a copy of this program where every user may run it.
func forEverybody(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	from, err := os.Open(exe)
	must(t, err)
	defer from.Close()
	dir, err := os.MkdirTemp("", "le")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	to, err := os.OpenFile(filepath.Join(dir, "envoy"), os.O_CREATE|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(to, from)
	must(t, errors.Join(err, to.Close()))
	return to.Name()
}

func (p *proxy) has(line string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.said, func(s string) bool { return strings.HasPrefix(s, line) })
}

// holds reports what it was told last of a name.
func (p *proxy) holds(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range slices.Backward(p.said) {
		if s == "held "+name || s == "gone "+name {
			return s == "held "+name
		}
	}
	return false
}

func (p *proxy) saying() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.said)
}

// session opens one and brings it up with an Envoy.
func (o *office) session() (*parent, *localv1.Attested, *proxy) {
	o.t.Helper()
	p := o.open(&localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: startOf(o.program())}})
	a := p.attested()
	e := o.envoy(a.Socket, 0, "")
	must(o.t, p.stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Envoy{Envoy: &localv1.EnvoyStarted{Pid: e.pid}}}))
	p.readiness()
	return p, a, e
}
