package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/sdk/internal/gate"
)

// Server performs the server's side of handshakes on connections that
// somebody else accepted. Listener and sdk/grpccreds are made of it.
type Server struct{ core *core }

// NewServer returns a Server. The error says what the configuration lacks.
func NewServer(config ServerConfig) (*Server, error) {
	k, err := config.core()
	if err != nil {
		return nil, err
	}
	return &Server{k}, nil
}

// Handshake performs a handshake on raw and returns the connection, whose peer
// is verified and authorised (PeerOf, identity.PeerOf). Raw belongs to it from
// then on, and is closed when it fails; the error is a *handshake.Error when
// the handshake failed. It ends after HandshakeTimeout, or earlier with ctx.
func (s *Server) Handshake(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	return s.core.handshake(ctx, raw, "", false)
}

// Recheck judges the peers of all open connections again: after the data of an
// AuthorizeFunc changed. What the Source changes is seen without it.
func (s *Server) Recheck() { s.core.live.recheck() }

// Open is how many connections are open.
func (s *Server) Open() int { return len(s.core.live.all()) }

// Ended is how many open connections were ended so far because their peer was
// revoked, expired, or is authorised no longer. As a metric:
//
//	prometheus.NewCounterFunc(opts, func() float64 { return float64(server.Ended()) })
func (s *Server) Ended() uint64 { return s.core.live.ended.Load() }

// Listener accepts connections whose handshake is complete. Use it wherever a
// net.Listener goes; handshakes run concurrently and never hold up Accept.
// Nothing is accepted before the first Accept.
type Listener struct {
	*Server
	inner  *gate.Listener
	ctx    context.Context
	cancel context.CancelCauseFunc
	start  sync.Once
	done   sync.WaitGroup // accepting, and handshakes
	hands  sync.WaitGroup // handshakes, and who waits to be accepted
	ready  chan *tls.Conn
	failed chan struct{} // closed after err is set
	err    error
	close  func() error
	http   atomic.Bool // served by net/http
}

// Listen announces on a local address, as net.Listen does.
func Listen(network, address string, config ServerConfig) (*Listener, error) {
	server, err := NewServer(config)
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return server.Listener(inner), nil
}

// NewListener returns a Listener on what inner accepts. The error says what
// the configuration lacks; inner is not closed then.
func NewListener(inner net.Listener, config ServerConfig) (*Listener, error) {
	server, err := NewServer(config)
	if err != nil {
		return nil, err
	}
	return server.Listener(inner), nil
}

// Listener returns a Listener on what inner accepts. Several listeners may
// share one Server.
func (s *Server) Listener(inner net.Listener) *Listener {
	l := &Listener{Server: s, inner: gate.New(inner), ready: make(chan *tls.Conn), failed: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.close = sync.OnceValue(func() error {
		l.cancel(net.ErrClosed)
		err := l.inner.Close()
		l.start.Do(func() { l.fail(net.ErrClosed) })
		l.done.Wait()
		return err
	})
	return l
}

// Accept returns the next connection, always a *tls.Conn, whose handshake is
// complete. Failed handshakes are not seen here, but by Hooks. The error is
// the inner listener's; net.ErrClosed after Close.
func (l *Listener) Accept() (net.Conn, error) {
	l.start.Do(func() {
		l.done.Add(1)
		go l.accept()
	})
	for {
		select {
		case c := <-l.ready:
			if c != nil {
				return c, nil
			} // Drain asked who is here
		case <-l.failed:
			return nil, l.err
		}
	}
}

// Addr is the inner listener's.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Drain lets nobody else in, and returns when all who had connected were
// accepted, or failed; somebody must go on accepting. Close is still to be
// called (http.Server.Shutdown does). sdk/drain uses it. The error is ctx's.
func (l *Listener) Drain(ctx context.Context) error {
	l.start.Do(func() { // nobody ever accepted
		_ = l.inner.Close()
		l.fail(net.ErrClosed)
	})
	select {
	case <-l.failed:
		return nil
	default:
	}
	if err := l.inner.Drain(ctx); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { l.hands.Wait(); close(done) }() // ends with the last handshake
	select {
	case <-done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// Who took the last one has noted it when he comes back for more.
	select {
	case l.ready <- nil:
	case <-l.failed:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// Close ends listening, ends handshakes under way and waits for all its
// goroutines. Connections that were accepted stay open, and are still closed
// when their peers are believed no longer.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) fail(err error) {
	l.err = err
	close(l.failed)
}

// Limits of the pause after an error that will pass, e.g. too many open files.
const (
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
)

func (l *Listener) accept() {
	defer l.done.Done()
	pause := time.Duration(0)
	for {
		// Who cannot be served waits in the kernel's queue, whose length is
		// bounded, and not here. The error is Close's, which Accept has too.
		_ = l.core.pending.room(l.ctx)
		raw, err := l.inner.Accept()
		if err == nil {
			pause = 0
			l.done.Add(1)
			l.hands.Add(1)
			go l.serve(raw)
			continue
		}
		if l.ctx.Err() != nil {
			l.fail(net.ErrClosed)
			return
		}
		//lint:ignore SA1019 net/http asks the same: no other sign tells that accepting goes on
		if passing, ok := errors.AsType[net.Error](err); !ok || !passing.Temporary() {
			l.core.log.Error("accepting connections ended", "address", l.inner.Addr().String(), "error", err)
			l.fail(err)
			return
		}
		pause = min(max(pause*2, shortestPause), longestPause)
		l.core.log.Error("accepting failed, trying again", "address", l.inner.Addr().String(), "in", pause, "error", err)
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
		}
	}
}

func (l *Listener) serve(raw net.Conn) {
	defer l.done.Done()
	defer l.hands.Done()
	c, err := l.core.handshake(l.ctx, raw, "", l.http.Load())
	if err != nil {
		return // Hooks know
	}
	l.core.pending.hold()
	defer l.core.pending.release()
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		c.NetConn().Close()
	}
}

// Serve runs an HTTP server on the listener. Its handlers find the caller by
// identity.PeerFromContext. It sets server.ConnContext (one that is set is
// called too) and wraps server.Handler with Handler; like http.Server.Serve it
// returns http.ErrServerClosed after Shutdown or Close. HTTP/2 and HTTP/1.1
// are spoken unless NextProtos says otherwise.
func (l *Listener) Serve(server *http.Server) error {
	l.http.Store(true)
	inner := server.ConnContext
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if ctx = ConnContext(ctx, c); inner != nil {
			ctx = inner(ctx, c)
		}
		return ctx
	}
	handler := server.Handler
	if handler == nil {
		handler = http.DefaultServeMux
	}
	server.Handler = Handler(handler)
	return server.Serve(l)
}
