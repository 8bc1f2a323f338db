package envoy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"go.uber.org/goleak"

	"github.com/legation-io/legation/internal/agent/envoy/envoytest"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	goleak.VerifyTestMain(m)
}

// testLogger shows Envoy's warnings when a test fails.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// rig is one Envoy with an agent's socket.
type rig struct {
	agent *envoytest.Agent
	proc  *Process
}

// startEnvoy runs an Envoy until the test ends; configure it through agent.
func startEnvoy(t testing.TB, als accesslogv3.AccessLogServiceServer, change func(*ProcessParams), configure func(*envoytest.Agent)) *rig {
	t.Helper()
	agent := envoytest.NewAgent(t, als)
	configure(agent)
	admin := filepath.Join(filepath.Dir(agent.Socket), "admin.sock")
	bootstrap, err := Bootstrap(BootstrapParams{NodeID: "test", Socket: agent.Socket, AdminSocket: admin})
	if err != nil {
		t.Fatal(err)
	}
	params := ProcessParams{Binary: envoytest.Binary(t), Bootstrap: bootstrap, AdminSocket: admin, Concurrency: 1, Logger: testLogger(t)}
	if change != nil {
		change(&params)
	}
	proc, err := NewProcess(params)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- proc.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run Envoy: %v", err)
		}
	})
	wait, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if err := proc.WaitLive(wait); err != nil {
		t.Fatalf("%v; refused: %v", err, agent.Nacks())
	}
	if n := agent.Nacks(); len(n) > 0 {
		t.Fatalf("Envoy refuses: %v", n)
	}
	return &rig{agent, proc}
}

// say sends a word over TLS and wants it back; the connection stays open.
func say(t testing.TB, port uint32, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	d := net.Dialer{Timeout: time.Minute}
	c, err := tls.DialWithDialer(&d, "tcp", fmt.Sprintf("127.0.0.1:%d", port), config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, echo(c)
}

func echo(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "hello" {
		return fmt.Errorf("echo says %q", b)
	}
	return nil
}
