package cutoff

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"google.golang.org/grpc/health"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) *Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return New(l)
}

func TestACutEndsConnectionsAndForgetsThem(t *testing.T) {
	l := listen(t)
	var clients, accepted []net.Conn
	for range 3 {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		clients, accepted = append(clients, c), append(accepted, a)
	}
	accepted[0].Close()
	if len(l.open) != 2 {
		t.Errorf("%d connections are remembered, want those 2 that are open", len(l.open))
	}
	l.Cut()
	for n, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection %d is open after the cut: %v", n, err)
		}
	}
	for _, a := range accepted {
		a.Close()
	}
	if len(l.open) != 0 {
		t.Errorf("%d connections are remembered after their end", len(l.open))
	}
	if _, err := l.Accept(); err == nil {
		t.Error("it accepts after the cut")
	}
	l.Cut() // again is nothing
}

func TestAServerStopsAtOnceAlthoughSomebodySaysNothing(t *testing.T) {
	l := listen(t)
	g := grpc.NewServer()
	healthv1.RegisterHealthServer(g, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	silent, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthv1.NewHealthClient(conn).Check(context.Background(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	l.Cut()
	g.Stop()
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("stopped after %s", took)
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
