package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Health says whether a program is ready, and if not, why. nil is ready.
type Health func() error

// HTTP serves /metrics, /livez, /readyz and their older spellings. Extra
// handlers are added by pattern.
type HTTP struct {
	Gatherer prometheus.Gatherer
	Ready    Health
	Extra    map[string]http.Handler
}

// Serve answers on l until ctx ends.
func (h *HTTP) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.Gatherer, promhttp.HandlerOpts{}))
	live := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	ready := func(w http.ResponseWriter, _ *http.Request) {
		if err := h.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	}
	for _, p := range []string{"/live", "/livez", "/healthz"} {
		mux.HandleFunc("GET "+p, live)
	}
	for _, p := range []string{"/ready", "/readyz", "/healthz/ready"} {
		mux.HandleFunc("GET "+p, ready)
	}
	for p, handler := range h.Extra {
		mux.Handle(p, handler)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() { // waited for below
		defer close(stopped)
		<-ctx.Done()
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		err = ctx.Err()
	}
	cancel()
	<-stopped
	return err
}
