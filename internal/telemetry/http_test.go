package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

// serve runs h until the test's end and returns its address.
func serve(t *testing.T, h *HTTP) (address string, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx, l) }()
	return l.Addr().String(), func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.New("not ended within a minute")
		}
	}
}

func TestWhatIsAnsweredOverHTTP(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ill := atomic.Bool{}
	h := &HTTP{Gatherer: NewRegistry("test"), Ready: func() error {
		if ill.Load() {
			return errors.New("the store is away")
		}
		return nil
	}, Extra: map[string]http.Handler{"GET /extra": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "more") })}}
	address, stop := serve(t, h)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	for _, tt := range []struct {
		name, method, path string
		ill                bool
		status             int
		says               string
	}{
		{"metrics", "GET", "/metrics", false, 200, `legation_build_info{program="test"`},
		{"alive", "GET", "/livez", false, 200, "ok"},
		{"alive though not ready", "GET", "/livez", true, 200, "ok"},
		{"ready", "GET", "/readyz", false, 200, "ok"},
		{"ready, by its older name", "GET", "/healthz/ready", false, 200, "ok"},
		{"not ready says why", "GET", "/readyz", true, 503, "the store is away"},
		{"what was added", "GET", "/extra", false, 200, "more"},
		{"nothing is changed by asking", "POST", "/metrics", false, 405, ""},
		{"nothing is deleted", "DELETE", "/readyz", false, 405, ""},
		{"nothing else", "GET", "/debug/pprof/", false, 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ill.Store(tt.ill)
			if code, body := ask(tt.method, tt.path); code != tt.status || !strings.Contains(body, tt.says) {
				t.Errorf("%s %s: %d %.100q", tt.method, tt.path, code, body)
			}
		})
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

func TestItEndsAlthoughARequestHangs(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	entered := make(chan struct{})
	h := &HTTP{Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Extra: map[string]http.Handler{
		"GET /hang": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { close(entered); <-r.Context().Done() })}}
	address, stop := serve(t, h)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /hang HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-entered
	begun := time.Now()
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("ended after %s", took)
	}
}

func TestAListenerThatFailsIsTheError(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	h := &HTTP{Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }}
	if err := h.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestHangupsAreHeardUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	heard := make(chan struct{}, 1)
	wait := OnHangup(ctx, func() { heard <- struct{}{} })
	for range 2 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
		case <-time.After(time.Minute):
			t.Fatal("a hangup was not heard")
		}
	}
	cancel()
	wait()
}

func TestALevelIsChangedWhileItRuns(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log := NewLogger(&out, LogConfig{Level: "warn", Format: format})
		log.Info("one")
		log.SetLevel("debug")
		log.Debug("two")
		log.SetLevel("nonsense") // changes nothing
		log.Log(context.Background(), slog.LevelDebug, "three")
		if s := out.String(); strings.Contains(s, "one") || !strings.Contains(s, "two") || !strings.Contains(s, "three") {
			t.Errorf("%s: %q", format, s)
		}
	}
}
