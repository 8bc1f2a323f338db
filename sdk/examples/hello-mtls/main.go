// Command hello-mtls says hello over mutual TLS with an identity from the
// Workload API: the smallest program that does. It links no gRPC and is one
// static file of less than 8 MB:
//
//	CGO_ENABLED=0 GOARCH=arm GOARM=7 go build -trimpath -ldflags '-s -w' ./examples/hello-mtls
//
// One side listens, the other calls, each naming the SPIFFE ID it expects:
//
//	hello-mtls -listen :8443 -peer spiffe://example.org/ns/edge/sa/sensor
//	hello-mtls -to hub:8443 -peer spiffe://example.org/ns/edge/sa/hub
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	_ "github.com/legation-io/legation/sdk/aes256gcm" // all TLS 1.3 of this process
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/light"
	"github.com/legation-io/legation/sdk/mtls"
)

// options are the command line.
type options struct {
	config light.Config
	to     string
	listen string
	peer   spiffeid.ID
	tls12  bool
}

func main() {
	begun := time.Now()
	var o options
	sds := false
	flag.StringVar(&o.config.Addr, "socket", "", "the Workload API, unix:///path; empty takes SPIFFE_ENDPOINT_SOCKET")
	flag.BoolVar(&sds, "sds", false, "ask the socket by SDS instead")
	flag.StringVar(&o.to, "to", "", "say hello to `host:port`")
	flag.StringVar(&o.listen, "listen", "", "answer hellos on `address`")
	flag.BoolVar(&o.tls12, "tls12", false, "TLS 1.2 of the constrained profile, for peers that have nothing newer")
	flag.TextVar(&o.peer, "peer", spiffeid.ID{}, "the `SPIFFE ID` that the peer must have")
	flag.Parse()
	if sds {
		o.config.SDS = &light.SDS{}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, begun); err != nil {
		fmt.Fprintln(os.Stderr, "hello-mtls:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, begun time.Time) error {
	switch {
	case o.peer.IsZero():
		return errors.New("-peer is missing: whom may this program talk to?")
	case o.to == "" && o.listen == "" || o.to != "" && o.listen != "":
		return errors.New("give one of -to and -listen")
	case o.listen != "":
		return serve(ctx, o)
	}
	// A call is over before anything could change: one answer is enough.
	snapshot, sizes, err := light.FetchSizes(ctx, o.config)
	if err != nil {
		return err
	}
	fmt.Printf("%s after %.1f ms: %d bytes on the wire, %d of DER, %d in PEM\n",
		snapshot.ID, float64(time.Since(begun).Microseconds())/1e3, sizes.Wire, sizes.DER, sizes.PEM)
	return call(ctx, o, identity.NewMemory(snapshot))
}

func call(ctx context.Context, o options, source identity.Source) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var conn net.Conn
	var err error
	if o.tls12 {
		conn, err = light.DialConstrained(ctx, "tcp", o.to, light.Constrained{Source: source, Authorize: o.wanted})
	} else {
		dialer, problem := mtls.NewDialer(mtls.ClientConfig{Source: source, Authorize: mtls.AuthorizeID(o.peer), Logger: slog.New(slog.DiscardHandler)})
		if problem != nil {
			return problem
		}
		defer dialer.Close()
		conn, err = dialer.DialContext(ctx, "tcp", o.to)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	text, err := io.ReadAll(io.LimitReader(conn, 1<<10))
	if err != nil {
		return err
	}
	state := ""
	if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		cs := c.ConnectionState()
		state = fmt.Sprintf(" (%s, %s)", tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite))
	}
	fmt.Printf("%s said %q%s\n", o.peer, text, state)
	return nil
}

func (o options) wanted(id spiffeid.ID) error {
	if id != o.peer {
		return fmt.Errorf("wanted is %s", o.peer)
	}
	return nil
}

// serve answers until ctx ends; its identity is renewed.
func serve(ctx context.Context, o options) error {
	source, err := light.Open(ctx, o.config)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := o.listener(source)
	if err != nil {
		return err
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })() // wakes Accept
	fmt.Println("listening on", listener.Addr())
	var answering sync.WaitGroup
	defer answering.Wait() // each has a deadline
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		answering.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := fmt.Fprintf(conn, "hello"); err != nil {
				fmt.Fprintln(os.Stderr, "hello-mtls:", err)
			}
		})
	}
}

func (o options) listener(source identity.Source) (net.Listener, error) {
	if !o.tls12 {
		return mtls.Listen("tcp", o.listen, mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeID(o.peer), Hooks: []handshake.Hook{handshake.LogHook(nil)}})
	}
	raw, err := net.Listen("tcp", o.listen)
	if err != nil {
		return nil, err
	}
	return light.ListenConstrained(raw, light.Constrained{Source: source, Authorize: o.wanted})
}
