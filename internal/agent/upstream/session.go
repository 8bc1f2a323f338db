package upstream

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	dialTimeout  = 10 * time.Second
	helloTimeout = 15 * time.Second
	drainTimeout = 10 * time.Second
	callTimeout  = 30 * time.Second
	// maxMessage is what the control plane may send at once.
	maxMessage = 64 << 20
)

// session is one connection to one replica under one certificate.
type session struct {
	server string
	serial string
	conn   *grpc.ClientConn
	client nodev1.NodeClient
	calls  atomic.Int64
}

func (l *Link) dial(server string, id *Identity) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+server,
		grpc.WithTransportCredentials(l.transport(id)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return l.p.Dial(ctx, address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: dialTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", server, err)
	}
	return conn, nil
}

// connect attests if needed, then lives with one replica until something
// ends that; it says whether the link was up.
func (l *Link) connect(ctx context.Context, server string) (connected bool, err error) {
	id := l.identity.Get()
	refusal := l.refusal.Swap(nil)
	switch {
	case id == nil || !l.p.Clock.Now().Before(id.NotAfter()):
		if id, err = l.attest(ctx, server); err != nil {
			return false, err
		}
	case refusal != nil && refusal.serial == id.Serial && l.p.Prover != nil:
		// Banned and pardoned, or revoked: a new token is the way back. When
		// it does not admit either, the certificate is tried again next time.
		if id, err = l.attest(ctx, server); err != nil {
			return false, fmt.Errorf("%w; attesting anew: %w", refusal.err, err)
		}
	}
	conn, err := l.dial(server, id)
	if err != nil {
		return false, err
	}
	s := &session{server: server, serial: id.Serial, conn: conn, client: nodev1.NewNodeClient(conn)}
	defer l.drain(ctx, s)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return l.followTrust(ctx, s, func() { connected = true; l.up(s) })
	})
	g.Go(func() error { return l.followConfig(ctx, s) })
	g.Go(func() error { return l.sendReports(ctx, s) })
	g.Go(func() error { return l.keepRenewed(ctx, s, id) })
	err = g.Wait()
	return connected, err
}

// drain lets calls that are under way finish before the connection closes.
func (l *Link) drain(ctx context.Context, s *session) {
	if s.calls.Load() == 0 || ctx.Err() != nil {
		_ = s.conn.Close()
		return
	}
	l.sessions.Go(func() {
		deadline := time.Now().Add(drainTimeout)
		for s.calls.Load() > 0 && time.Now().Before(deadline) && ctx.Err() == nil {
			_ = l.wait(ctx, 20*time.Millisecond)
		}
		_ = s.conn.Close()
	})
}

func (l *Link) hello() *nodev1.Hello {
	return &nodev1.Hello{TrustDomain: l.p.TrustDomain.Name(), Protocol: Protocol, Version: l.p.Version}
}

func (l *Link) checkHello(h *nodev1.Hello) error {
	if h == nil {
		return fault.New(fault.Invalid, "the control plane did not open the stream with a hello")
	}
	if h.GetTrustDomain() != l.p.TrustDomain.Name() {
		return fault.New(fault.Invalid, "the control plane serves trust domain %q, not %q", h.GetTrustDomain(), l.p.TrustDomain.Name())
	}
	if h.GetProtocol() != Protocol {
		return fault.New(fault.Invalid, "the control plane (%s) answers with protocol version %d; this agent speaks %d: upgrade the older side", h.GetVersion(), h.GetProtocol(), Protocol)
	}
	return nil
}

// keepRenewed waits until half of the certificate's life is over and renews
// it. A renewed certificate begins a new session, so that what was proved
// once is proved again.
func (l *Link) keepRenewed(ctx context.Context, s *session, id *Identity) error {
	at := id.RenewAt
	for failures := 0; ; failures++ {
		if err := clock.Until(ctx, l.p.Clock, at); err != nil {
			return err
		}
		err := l.renew(ctx, s, id)
		if err == nil {
			l.metrics.renewed.WithLabelValues("ok").Inc()
			return errRollover
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.metrics.renewed.WithLabelValues(string(fault.KindOf(err))).Inc()
		l.p.Log.Error("the node's certificate could not be renewed; trying again", "error", plain(err), "expires", id.NotAfter())
		at = l.p.Clock.Now().Add(l.backoff(min(failures+3, 12), 1, err))
	}
}

// plain is a gRPC error without its wrapping.
func plain(err error) string {
	if s, ok := status.FromError(err); ok && err != nil {
		return s.Message()
	}
	return err.Error()
}
