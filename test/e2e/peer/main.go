// Command peer is the workload of the end-to-end tests: a program that knows
// nothing of TLS, and a plain client of the Workload API.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "peer serve LISTEN NAME | get URL | udp ADDRESS | watch SOCKET | exit CODE | signals | sdk-serve LISTEN SOCKET | sdk-get URL SOCKET ID | chain-serve LISTEN SOCKET NEXT-URL NEXT-ID")
		os.Exit(2)
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		err = serve(args[0], args[1])
	case "get":
		err = get(args[0])
	case "udp":
		err = udp(args[0])
	case "watch":
		err = watch(args[0])
	case "exit":
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "signals":
		err = signals()
	case "sdk-serve":
		err = sdkServe(args[0], args[1])
	case "sdk-get":
		err = sdkGet(args[0], args[1], args[2])
	case "chain-serve":
		err = chainServe(args[0], args[1], args[2], args[3])
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

// serve answers every plain HTTP request with a name.
func serve(listen, name string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
}

// get prints what a plain HTTP request is answered.
func get(url string) error {
	client := &http.Client{Timeout: 3 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

// udp sends one datagram and waits briefly for why it did not leave.
func udp(address string) error {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	if os.IsTimeout(err) {
		return nil // it left, and nobody answers
	}
	return err
}

// watch prints every identity it is given, for as long as it runs: the agent
// may come and go.
func watch(socket string) error {
	for {
		client, err := workloadapi.New(context.Background(), workloadapi.WithAddr("unix://"+socket))
		if err != nil {
			return err
		}
		err = client.WatchX509Context(context.Background(), printer{})
		client.Close()
		fmt.Println("again", err)
		time.Sleep(100 * time.Millisecond)
	}
}

type printer struct{}

func (printer) OnX509ContextUpdate(c *workloadapi.X509Context) {
	for _, s := range c.SVIDs {
		fmt.Printf("svid %s %x\n", s.ID, s.Certificates[0].SerialNumber)
	}
}

func (printer) OnX509ContextWatchError(err error) { fmt.Println("error", err) }

// signals prints each signal it gets and ends by SIGTERM with code 7.
func signals() error {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("waiting")
	for s := range got {
		fmt.Println("got", s)
		if s == syscall.SIGTERM {
			os.Exit(7)
		}
	}
	return nil
}
