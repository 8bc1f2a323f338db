package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/freeport"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	wl "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// planeFor is a control plane that trusts and signs, with one entry for this
// process.
func planeFor(t *testing.T) *nodetest.Plane {
	t.Helper()
	p := nodetest.New(t)
	p.SetTrust(node.ScopeAll, "crl", "default", p.Authority.CRL(t, 1))
	p.SetTrust(node.ScopeAll, "heartbeat", "default", p.Authority.Heartbeat(t, 1))
	p.SetEntry("node-1", &nodev1.Entry{
		Name: "default/test", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/test",
		Selectors: []string{"unix:uid:0"},
	})
	return p
}

func configFor(t *testing.T, p *nodetest.Plane) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "la") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := DefaultConfig()
	c.TrustDomain, c.Servers, c.BundleHash = "example.org", []string{p.Address}, p.Authority.BundleHash()
	c.DataDir, c.Socket, c.AdminSocket = filepath.Join(dir, "data"), filepath.Join(dir, "agent.sock"), filepath.Join(dir, "admin.sock")
	c.JoinTokenFile, c.Metrics = filepath.Join(dir, "token"), ""
	if err := os.WriteFile(c.JoinTokenFile, []byte(p.Token("node-1")), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// running is an agent.
type running struct {
	stop  context.CancelFunc
	ended chan error
}

func start(t *testing.T, c Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- Run(ctx, c, slog.New(slog.DiscardHandler)) }()
	nodetest.Eventually(t, "the agent is connected", func() bool {
		select {
		case err := <-r.ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
		conn := dial(t, c.AdminSocket)
		defer conn.Close()
		st, err := localv1.NewAgentAdminClient(conn).Status(t.Context(), &localv1.StatusRequest{})
		return err == nil && st.Connected
	})
	return r
}

func (r *running) end(t *testing.T) time.Duration {
	t.Helper()
	begun := time.Now()
	r.stop()
	select {
	case err := <-r.ended:
		if err != nil {
			t.Fatalf("a stop is no failure: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("not ended within a minute")
	}
	return time.Since(begun)
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestAnAgentStartsAndStopsAgainAndAgainWithoutATrace(t *testing.T) {
	p := planeFor(t)
	c := configFor(t, p)
	c.Metrics, c.SDS.Listen = "127.0.0.1:0", "127.0.0.1:0"
	start(t, c).end(t)
	os.Remove(c.JoinTokenFile) // used up; what is sealed in the data directory serves
	before, files := goleak.IgnoreCurrent(), openFiles(t)
	for range 20 {
		r := start(t, c)
		conn := dial(t, c.Socket)
		stream, err := wl.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"), &wl.X509SVIDRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatalf("no identity: %v", err)
		}
		r.end(t)
		conn.Close()
	}
	nodetest.Eventually(t, "what the plane held of it is closed", func() bool { return openFiles(t) <= files })
	_ = goleak.Find(before) // the plane's own connections end in their time
	for _, s := range []string{c.Socket, c.AdminSocket} {
		if _, err := os.Lstat(s); err == nil {
			t.Errorf("%s is left", s)
		}
	}
}

func TestAnAgentEndsAtOnceAlthoughStreamsAreOpen(t *testing.T) {
	p := planeFor(t)
	c := configFor(t, p)
	var err error
	if c.SDS.Listen, err = freeport.Address(); err != nil {
		t.Fatal(err)
	}
	r := start(t, c)
	conn := dial(t, c.Socket)
	defer conn.Close()
	svids, err := wl.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true"), &wl.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := svids.Recv(); err != nil {
		t.Fatal(err)
	}
	secrets, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := localv1.NewSessionsClient(conn).Open(t.Context()); err != nil { // says nothing
		t.Fatal(err)
	}
	for _, address := range [][2]string{{"unix", c.Socket}, {"unix", c.AdminSocket}, {"tcp", c.SDS.Listen}} {
		silent, err := net.Dial(address[0], address[1])
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
	}
	if took := r.end(t); took > handshakeTimeout*8/10 { // by then the silent would have been cut anyway
		t.Errorf("ended after %s", took)
	}
	if _, err := secrets.Recv(); err == nil {
		t.Error("a stream outlives its agent")
	}
}

func TestAnAddressInUseEndsTheAgentAndIsNamed(t *testing.T) {
	p := planeFor(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for key, set := range map[string]func(*Config){
		"metrics":     func(c *Config) { c.Metrics = taken.Addr().String() },
		"sds.listen":  func(c *Config) { c.SDS.Listen = taken.Addr().String() },
		"socket":      func(c *Config) { c.Socket = "/proc/version" },
		"adminSocket": func(c *Config) { c.AdminSocket = "/proc/version" },
	} {
		t.Run(key, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			c := configFor(t, p)
			set(&c)
			c.RunDir = filepath.Join(c.DataDir, "sessions")
			if err := Run(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%v does not name %s", err, key)
			}
			goleak.VerifyNone(t, before)
		})
	}
}

func TestAPartThatFailsEndsTheRestAndIsTheError(t *testing.T) {
	p := planeFor(t)
	for name, tt := range map[string]struct {
		set  func(*testing.T, *Config)
		says string
	}{
		"a token that is none": {func(t *testing.T, c *Config) {
			if err := os.WriteFile(c.JoinTokenFile, []byte("lgt_nonsense"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "this is not a join token"},
		"no token and no identity": {func(_ *testing.T, c *Config) { os.Remove(c.JoinTokenFile) }, "make a join token"},
	} {
		t.Run(name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			c := configFor(t, p)
			c.Metrics = "127.0.0.1:0"
			tt.set(t, &c)
			ended := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { ended <- Run(ctx, c, slog.New(slog.DiscardHandler)) }()
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("ended with %v, which does not say %q", err, tt.says)
				}
			case <-time.After(time.Minute):
				t.Fatal("it goes on")
			}
			nodetest.Eventually(t, "nothing of it is left", func() bool {
				return goleak.Find(before, goleak.IgnoreAnyFunction("google.golang.org/grpc.(*Server).handleRawConn.func1")) == nil
			})
		})
	}
}

func TestAnAgentServesWhatItHoldsWithoutItsControlPlane(t *testing.T) {
	p := planeFor(t)
	c := configFor(t, p)
	var err error
	if c.Metrics, err = freeport.Address(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ready := func() (int, string) {
		r, err := client.Get("http://" + c.Metrics + "/readyz")
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	r := start(t, c)
	nodetest.Eventually(t, "it is ready", func() bool { code, _ := ready(); return code == 200 })
	r.end(t)
	p.Stop()

	ctx, cancel := context.WithCancel(context.Background())
	r = &running{stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- Run(ctx, c, slog.New(slog.DiscardHandler)) }()
	nodetest.Eventually(t, "it is ready from its cache", func() bool { code, _ := ready(); return code == 200 })
	conn := dial(t, c.AdminSocket)
	defer conn.Close()
	st, err := localv1.NewAgentAdminClient(conn).Status(t.Context(), &localv1.StatusRequest{TrustDomain: "example.org"})
	if err != nil {
		t.Fatal(err)
	}
	if st.Connected || st.Entries != 1 || st.Node != "node-1" || len(st.Problems) == 0 {
		t.Errorf("status: %v", st)
	}
	if _, err := localv1.NewAgentAdminClient(conn).Status(t.Context(), &localv1.StatusRequest{TrustDomain: "other.org"}); err == nil {
		t.Error("it answers for another trust domain")
	}
	w, err := localv1.NewAgentAdminClient(conn).Why(t.Context(), &localv1.WhyRequest{Pid: int32(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	if len(w.Identities) != 1 || w.Identities[0].Entry != "default/test" || w.Summary == "" {
		t.Errorf("why: %v", w)
	}
	r.end(t)
}
