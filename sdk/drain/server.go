package drain

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/legation-io/legation/sdk/internal/gate"
)

// A drainer is a listener that can lose nobody by itself, as mtls.Listener.
type drainer interface {
	net.Listener
	// Drain lets nobody else in, and returns when all who were are accepted.
	Drain(context.Context) error
}

func gated(l net.Listener) drainer {
	if d, ok := l.(drainer); ok {
		return d
	}
	return gate.New(l)
}

// HTTP serves on l: with TLS when server.TLSConfig is set, with mutual TLS when
// l is an *mtls.Listener. It wraps server.Handler. The listener must not be one
// of crypto/tls when TLSConfig is set.
func HTTP(server *http.Server, l net.Listener) Part {
	handler := server.Handler
	if handler == nil {
		handler = http.DefaultServeMux
	}
	var leaving atomic.Bool
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving.Load() {
			// HTTP/1.1: the last answer on this connection (RFC 9112 9.6).
			// HTTP/2: net/http sends GOAWAY instead.
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	conns := follow(server)
	door := gated(l)
	return Part{
		Name: "HTTP server on " + l.Addr().String(),
		Run: func(context.Context) error {
			var err error
			switch s := l.(type) {
			case interface{ Serve(*http.Server) error }: // mtls.Listener
				err = s.Serve(server)
			default:
				if server.TLSConfig != nil {
					err = server.ServeTLS(door, "", "")
				} else {
					err = server.Serve(door)
				}
			}
			if errors.Is(err, http.ErrServerClosed) || leaving.Load() && errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		},
		Announce: func() { leaving.Store(true) },
		Drain: func(ctx context.Context) error {
			leaving.Store(true)
			if err := door.Drain(ctx); err != nil {
				return err
			}
			// From Shutdown on net/http answers no request that it is still
			// reading: it closes the connection.
			if err := conns.quiet(ctx); err != nil {
				return err
			}
			return server.Shutdown(ctx)
		},
		Close: server.Close,
	}
}

// A GRPCServer is a *grpc.Server: this package does not link gRPC.
type GRPCServer interface {
	Serve(net.Listener) error // until the listener is closed or it is stopped
	GracefulStop()            // waits for calls under way
	Stop()                    // ends them
}

// GRPC serves on l. Clients are told by GOAWAY when the listener is closed, and
// repeat on another connection what this server has not begun.
func GRPC(server GRPCServer, l net.Listener) Part {
	door := gated(l)
	return Part{
		Name: "gRPC server on " + l.Addr().String(),
		Run:  func(context.Context) error { return server.Serve(door) },
		Drain: func(ctx context.Context) error {
			if err := door.Drain(ctx); err != nil {
				return err
			}
			done := make(chan struct{})
			go func() { server.GracefulStop(); close(done) }()
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				server.Stop() // ends GracefulStop, too
				<-done
				return context.Cause(ctx)
			}
		},
		Close: func() error { server.Stop(); return nil },
	}
}
