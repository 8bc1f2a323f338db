package acmecert

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestWaitSaysWhatIsWrongWhenItGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there
	m := newManager(t, func(c *Config) {
		c.Domains, c.Directory = []string{"a.test"}, "https://"+l.Addr().String()+"/dir"
	})
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- m.Wait(ctx) }()

	ran := make(chan error, 1)
	running, stop := context.WithCancel(t.Context())
	go func() { ran <- m.Run(running) }()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(m.Status()[0].Err.Error(), "refused"); {
		if time.Now().After(end) {
			t.Fatalf("the order did not fail: %v", m.Status()[0].Err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-waited; err == nil || !strings.Contains(err.Error(), "a.test") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Wait gave up with: %v", err)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
