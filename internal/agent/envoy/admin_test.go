package envoy

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// Who answers at the admin socket is the session's user: what he says is
// bounded, in memory more than what only passes through.
func TestAnAdminThatNeverStopsTalkingIsCutOff(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a := NewAdmin(socket)
	if _, err := a.ServedCertificates(ctx); !fault.Is(err, fault.Limited) {
		t.Errorf("certificates: %v", err)
	}
	if _, err := a.Stats(ctx, ""); !fault.Is(err, fault.Limited) {
		t.Errorf("statistics: %v", err)
	}
	if err := a.Prometheus(ctx, "", io.Discard); !fault.Is(err, fault.Limited) {
		t.Errorf("metrics: %v", err)
	}
}
