package acmecert

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWaitSaysWhatIsWrongWhenItGivesUp(t *testing.T) {
	stranger := httptest.NewUnstartedServer(http.NotFoundHandler()) // whose certificate no root verifies
	stranger.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	stranger.StartTLS()
	defer stranger.Close()
	m := newManager(t, func(c *Config) { c.Domains, c.Directory = []string{"a.test"}, stranger.URL })
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- m.Wait(ctx) }()

	ran := make(chan error, 1)
	running, stop := context.WithCancel(t.Context())
	go func() { ran <- m.Run(running) }()
	for end := time.Now().Add(time.Minute); !strings.Contains(m.Status()[0].Err.Error(), "set RootCAs"); {
		if time.Now().After(end) {
			t.Fatalf("the order did not fail: %v", m.Status()[0].Err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-waited; err == nil || !strings.Contains(err.Error(), "a.test") || !strings.Contains(err.Error(), "set RootCAs") {
		t.Errorf("Wait gave up with: %v", err)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
