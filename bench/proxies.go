package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/unixsocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	localProxies = 50
	secretBytes  = 2048 // a validation context with a root and a short CRL
)

// proxies is from a change in the agent's engine to the last of 50 local
// proxies, each on a connection of its own to the agent's real xDS door, on a
// Unix socket; beside the same bytes on plain Unix sockets.
func proxies(ctx context.Context, r *run) ([]Row, error) {
	engine := distribute.New(distribute.Params{})
	set := func() error {
		body := make([]byte, secretBytes)
		_, err := rand.Read(body)
		engine.Apply(distribute.Change{Scope: "mine", Resource: distribute.NewResource(sds.TypeSecret, "ROOTCA", body)})
		return err
	}
	if err := set(); err != nil {
		return nil, err
	}
	door := sds.New(sds.Params{Engine: engine, Authorise: func(context.Context) (*sds.Attachment, error) {
		return &sds.Attachment{Subscriber: "envoy", Scopes: []distribute.Scope{"mine"}}, nil
	}})
	path := filepath.Join(r.dir, "sds.sock")
	l, err := unixsocket.Listen(path, 0o600)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(sds.ServerOptions()...)
	door.Register(server)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer func() { server.Stop(); serving.Wait(); door.Wait() }()

	ctx, cancel := context.WithCancel(ctx)
	arrived := make(chan time.Time, localProxies)
	failed := make(chan error, localProxies)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for range localProxies {
		conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		clients.Go(func() { failed <- subscribe(ctx, conn, arrived) })
	}
	if _, err := lastArrival(arrived, failed, localProxies); err != nil {
		return nil, err
	}
	floor, err := newFan("unix", filepath.Join(r.dir, "floor.sock"), localProxies)
	if err != nil {
		return nil, err
	}
	defer floor.close()
	var pushes, sockets times
	for range of(r, 300, 60) {
		start := time.Now()
		if err := set(); err != nil {
			return nil, err
		}
		last, err := lastArrival(arrived, failed, localProxies)
		if err != nil {
			return nil, err
		}
		pushes = append(pushes, last.Sub(start))
		took, err := floor.send(secretBytes)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, took)
	}
	const what = "agent, last of 50 local proxies"
	return []Row{
		fact(what+", p50", pushes.p50(), "ms").beside("raw Unix sockets", sockets.p50()),
		atMost(what+", p99", pushes.p99(), "ms", 10).beside("raw Unix sockets", sockets.p99()),
	}, nil
}

// subscribe is one proxy: it asks for a secret and acknowledges each version.
func subscribe(ctx context.Context, conn *grpc.ClientConn, arrived chan<- time.Time) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	ask := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: sds.TypeSecret, ResourceNamesSubscribe: []string{"ROOTCA"}}
	for {
		if err := stream.Send(ask); err != nil {
			return err
		}
		res, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(res.GetResources()) != 1 {
			return fmt.Errorf("%d resources instead of one", len(res.GetResources()))
		}
		arrived <- time.Now()
		ask = &discoveryv3.DeltaDiscoveryRequest{TypeUrl: sds.TypeSecret, ResponseNonce: res.GetNonce()}
	}
}

// lastArrival waits for n arrivals and returns the last.
func lastArrival(arrived <-chan time.Time, failed <-chan error, n int) (last time.Time, err error) {
	deadline := time.After(10 * time.Second)
	for i := range n {
		select {
		case at := <-arrived:
			if at.After(last) {
				last = at
			}
		case err := <-failed:
			return last, fmt.Errorf("a stream ended: %w", err)
		case <-deadline:
			return last, errors.New(fmt.Sprint("only ", i, " of ", n, " within 10 s"))
		}
	}
	return last, nil
}
