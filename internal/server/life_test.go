package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// configFor is a control plane on ports that the kernel chooses.
func configFor(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	c := DefaultConfig()
	c.TrustDomain, c.DataDir, c.AdminSocket = "example.org", filepath.Join(dir, "data"), filepath.Join(dir, "admin.sock")
	c.Listen, c.Metrics = "127.0.0.1:0", "127.0.0.1:0"
	return c
}

// plane is a running control plane.
type plane struct {
	stop  context.CancelFunc
	ended chan error
}

func start(t testing.TB, c Config) *plane {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &plane{stop: cancel, ended: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { p.ended <- Run(ctx, c, slog.New(slog.DiscardHandler), func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-p.ended:
		t.Fatalf("it ended before it was ready: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("not ready within a minute")
	}
	return p
}

// end stops it.
func (p *plane) end(t testing.TB) {
	t.Helper()
	p.stop()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Fatalf("a stop is no failure: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("not ended within a minute")
	}
}

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestItStartsAndStopsAgainAndAgainWithoutATrace(t *testing.T) {
	c := configFor(t)
	start(t, c).end(t) // what libraries start once and keep
	before := goleak.IgnoreCurrent()
	for range 20 {
		start(t, c).end(t)
	}
	goleak.VerifyNone(t, before)
}

// Nobody who is connected can hold up its end, for ever.
func TestItEndsAlthoughStreamsAreOpen(t *testing.T) {
	c := configFor(t)
	p := start(t, c)
	conn := dial(t, c.AdminSocket)
	defer conn.Close()
	client := adminv1.NewAdminClient(conn)
	if _, err := client.Apply(t.Context(), &adminv1.ApplyRequest{}); err == nil {
		t.Log("an empty apply is taken") // either way the door has answered
	}
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("unix", c.AdminSocket) // says nothing, ever
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p.end(t)
	if _, err := net.Dial("unix", c.AdminSocket); err == nil {
		t.Error("the admin socket is served still")
	}
}

func TestAPortInUseEndsItAndIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for key, set := range map[string]func(*Config){
		"metrics":     func(c *Config) { c.Metrics = taken.Addr().String() },
		"listen":      func(c *Config) { c.Listen = taken.Addr().String() },
		"adminSocket": func(c *Config) { c.AdminSocket = "/proc/version" },
	} {
		t.Run(key, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			c := configFor(t)
			set(&c)
			err := Run(t.Context(), c, slog.New(slog.DiscardHandler), func() { t.Error("it said it was ready") })
			if err == nil || !strings.Contains(err.Error(), key) {
				t.Errorf("%v does not name %s", err, key)
			}
			if next := "ss -ltnp) and end it, or choose another address with --" + key; key != "adminSocket" && !strings.Contains(err.Error(), next) {
				t.Errorf("%v does not say what to do", err)
			}
			if made, _ := filepath.Glob(filepath.Join(c.DataDir, "*")); len(made) > 0 {
				t.Errorf("it has made %v", made)
			}
			goleak.VerifyNone(t, before)
			// What it had opened is free again.
			good := configFor(t)
			good.DataDir = c.DataDir
			start(t, good).end(t)
		})
	}
}

func TestWhatIsPublishedOverHTTP(t *testing.T) {
	c := configFor(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Metrics = l.Addr().String()
	l.Close()
	p := start(t, c)
	defer p.end(t)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"/metrics": "legation_build_info", "/readyz": "ok", "/livez": "ok"} {
		r, err := client.Get("http://" + c.Metrics + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s %.80s", path, r.Status, body)
		}
	}
}

func TestWhatItSealedIsNotReplacedWhenItsKeyIsLost(t *testing.T) {
	c := configFor(t)
	start(t, c).end(t)
	c.KEKFile = filepath.Join(t.TempDir(), "another")
	err := Run(t.Context(), c, slog.New(slog.DiscardHandler), nil)
	if err == nil || fault.KindOf(err) == fault.Internal {
		t.Errorf("a new key was made for what another seals, or it is not told: %v", err)
	}
}
