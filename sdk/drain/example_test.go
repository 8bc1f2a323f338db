package drain_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/legation-io/legation/sdk/drain"
)

// A server that answers what has begun. SIGTERM comes in the middle of a
// request here.
func Example() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 1) // in place of the process's, for this example
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		signals <- syscall.SIGTERM
		fmt.Fprint(w, "answered")
	})}

	client := make(chan string)
	go func() {
		resp, err := http.Get("http://" + listener.Addr().String())
		if err != nil {
			client <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		client <- string(body)
	}()

	err = drain.Run(context.Background(), drain.Config{
		Notice:   -1, // a server with clients wants some
		Draining: func() { fmt.Println("no longer ready") },
		Logger:   slog.New(slog.DiscardHandler),
		Signals:  signals,
	}, drain.HTTP(server, listener))
	fmt.Println(<-client, err)
	// Output:
	// no longer ready
	// answered <nil>
}

// Configuration that is read again on SIGHUP, and work that ends last.
func ExampleBackground() {
	signals := make(chan os.Signal, 1)
	reload := func() error {
		fmt.Println("read again")
		signals <- syscall.SIGTERM
		return errors.New("line 3: what is this")
	}
	signals <- syscall.SIGHUP
	err := drain.Run(context.Background(), drain.Config{Reload: []func() error{reload}, Signals: signals, Logger: slog.New(slog.DiscardHandler)},
		drain.Background("watcher", func(ctx context.Context) error {
			<-ctx.Done()
			fmt.Println("watcher ended")
			return nil
		}))
	fmt.Println(err)
	// Output:
	// read again
	// watcher ended
	// <nil>
}
