package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// streams are trust streams of attested nodes, each over its own mTLS
// connection, that acknowledge what comes and keep nothing. One machine
// cannot do the checking of 100 machines' agents: that is measured with one
// real link beside them.
type streams struct {
	conns  []*grpc.ClientConn
	cancel context.CancelFunc
	wg     sync.WaitGroup
	target atomic.Pointer[target]
	failed chan error
}

// target is what a trial waits for.
type target struct {
	match func(*nodev1.TrustResource) bool
	at    chan time.Time
}

// openStreams attests n nodes and opens a trust stream for each.
func openStreams(ctx context.Context, p *plane, first, n int) (*streams, error) {
	ns, err := attachNodes(ctx, p, first, n)
	if err != nil {
		return nil, err
	}
	var ids []*upstream.Identity
	var roots [][]byte
	for _, l := range ns.links {
		id, _ := l.Identity()
		v, _ := l.View()
		ids, roots = append(ids, id), v.Bundles[benchDomain.Name()].GetX509Roots()
	}
	ns.close()
	pool := x509.NewCertPool()
	for _, der := range roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		pool.AddCert(root)
	}
	s := &streams{failed: make(chan error, n)}
	ctx, s.cancel = context.WithCancel(ctx)
	for _, id := range ids {
		if err := s.open(ctx, p, id, pool); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *streams) open(ctx context.Context, p *plane, id *upstream.Identity, pool *x509.CertPool) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "localhost", RootCAs: pool, Certificates: []tls.Certificate{*id.TLS()}})))
	if err != nil {
		return err
	}
	s.conns = append(s.conns, conn)
	stream, err := nodev1.NewNodeClient(conn).Trust(ctx)
	if err != nil {
		return err
	}
	hello := &nodev1.Hello{TrustDomain: benchDomain.Name(), Protocol: upstream.Protocol, Version: "bench"}
	if err := stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Open{Open: &nodev1.TrustOpen{Hello: hello}}}); err != nil {
		return err
	}
	synced := make(chan struct{})
	s.wg.Go(func() { s.failed <- s.follow(stream, synced) })
	select {
	case <-synced:
		return nil
	case err := <-s.failed:
		return err
	case <-time.After(20 * time.Second):
		return errors.New("a trust stream was not synced within 20 s")
	}
}

func (s *streams) follow(stream nodev1.Node_TrustClient, synced chan struct{}) error {
	for {
		res, err := stream.Recv()
		if err != nil {
			return err
		}
		if res.GetSynced() != nil {
			close(synced)
		}
		r := res.GetResource()
		if r == nil {
			continue
		}
		if t := s.target.Load(); t != nil && t.match(r) {
			t.at <- time.Now()
		}
		if err := stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Ack{Ack: &nodev1.Ack{Nonce: r.GetNonce()}}}); err != nil {
			return err
		}
	}
}

func (s *streams) close() {
	s.cancel()
	for _, c := range s.conns {
		c.Close()
	}
	s.wg.Wait()
}

// lastOf calls change and returns when the last stream, and the real agent,
// had what the change makes.
func (s *streams) lastOf(ctx context.Context, match func(*nodev1.TrustResource) bool, agent *nodes, ok func(*upstream.View) bool, change func() error) (time.Time, error) {
	t := &target{match: match, at: make(chan time.Time, 4*len(s.conns))}
	s.target.Store(t)
	defer s.target.Store(nil)
	last, err := agent.lastOf(ctx, ok, change)
	if err != nil {
		return last, err
	}
	deadline := time.After(10 * time.Second)
	for i := range s.conns {
		select {
		case at := <-t.at:
			if at.After(last) {
				last = at
			}
		case err := <-s.failed:
			return last, fmt.Errorf("a trust stream ended: %w", err)
		case <-deadline:
			return last, fmt.Errorf("%d of %d streams had it within 10 s", i, len(s.conns))
		}
	}
	return last, nil
}
