package drain

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// What net/http's Shutdown alone loses: it closes a connection whose first
// request arrives, or is read, after it has begun.
func TestARequestThatComesAfterTheDoorWasClosedIsAnswered(t *testing.T) {
	defer func(d time.Duration) { silence = d }(silence)
	silence = time.Minute
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 2)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "done") }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				accepted <- struct{}{}
			}
		},
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	part := HTTP(server, listener)
	go func() {
		ended <- Run(ctx, Config{Notice: -1, Deadline: time.Minute, Logger: slog.New(slog.DiscardHandler)}, part)
	}()
	var conns [2]net.Conn
	for n, sent := range []string{"", "GET / HTTP/1.1\r\nHo"} {
		if conns[n], err = net.Dial("tcp", listener.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer conns[n].Close()
		conns[n].SetDeadline(time.Now().Add(time.Minute))
		io.WriteString(conns[n], sent)
		<-accepted
	}
	stop()
	time.Sleep(2 * 200 * time.Millisecond) // longer than the queue is watched: too short proves less, and fails nothing
	for n, rest := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "st: a\r\n\r\n"} {
		io.WriteString(conns[n], rest)
		resp, err := http.ReadResponse(bufio.NewReader(conns[n]), nil)
		if err != nil {
			t.Errorf("request %d was lost: %v", n, err)
			continue
		}
		if body, err := io.ReadAll(resp.Body); string(body) != "done" || !resp.Close {
			t.Errorf("request %d: %q, %v, close %v", n, body, err, resp.Close)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
