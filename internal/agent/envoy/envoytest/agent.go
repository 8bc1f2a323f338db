package envoytest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Binary is the pinned Envoy: $LEGATION_ENVOY, else tools/envoy/envoy.
func Binary(t testing.TB) string {
	t.Helper()
	if p := os.Getenv("LEGATION_ENVOY"); p != "" {
		return p
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := os.Stat(filepath.Join(dir, "tools", "envoy.txt")); err == nil {
			p := filepath.Join(dir, "tools", "envoy", "envoy")
			if _, err := os.Stat(p); err != nil {
				t.Fatalf("no Envoy at %s: run make envoy", p)
			}
			return p
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("not inside the module; set LEGATION_ENVOY")
	return ""
}

// Resource is anything with a name that LDS or CDS serves.
type Resource interface {
	proto.Message
	GetName() string
}

// Agent is a session's socket as Envoy sees it: delta ADS with fixed
// listeners and clusters, and whatever access log service is registered.
type Agent struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	Socket string
	// Silent makes it listen and never answer.
	Silent bool

	t    testing.TB
	als  accesslogv3.AccessLogServiceServer
	stop func() // nil while stopped; used by the test's goroutine alone

	mu        sync.Mutex            // guards what follows
	resources map[string][]Resource // by type URL
	nacks     []string
	asked     int
	changed   chan struct{}
}

// Type URLs of what Agent serves.
const (
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// NewAgent serves on a socket in a temporary directory until the test ends.
func NewAgent(t testing.TB, als accesslogv3.AccessLogServiceServer) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "lgt") // short: a socket's path has 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{
		Socket: filepath.Join(dir, "agent.sock"), resources: map[string][]Resource{},
		changed: make(chan struct{}),
	}
	a.t, a.als = t, als
	a.Start()
	t.Cleanup(func() { a.Stop(); os.RemoveAll(dir) })
	return a
}

// Start serves; NewAgent did so already.
func (a *Agent) Start() {
	a.t.Helper()
	l, err := net.Listen("unix", a.Socket)
	if err != nil {
		a.t.Fatal(err)
	}
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, a)
	if a.als != nil {
		accesslogv3.RegisterAccessLogServiceServer(s, a.als)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }() // ends with Stop
	a.stop = func() { s.Stop(); <-done }
}

// Stop ends every stream and the socket, as a killed agent does.
func (a *Agent) Stop() {
	if a.stop != nil {
		a.stop()
		a.stop = nil
	}
}

// Set replaces all resources of a type.
func (a *Agent) Set(typeURL string, rs ...Resource) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resources[typeURL] = rs
	close(a.changed)
	a.changed = make(chan struct{})
}

// Nacks returns what Envoy refused so far, and why.
func (a *Agent) Nacks() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.nacks...)
}

// Asked is how many requests came.
func (a *Agent) Asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// DeltaAggregatedResources serves what Set gave.
func (a *Agent) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	reqs := make(chan *discoveryv3.DeltaDiscoveryRequest)
	go func() {
		defer cancel()
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case reqs <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	subscribed := map[string]map[string]bool{} // type to names sent
	nonce := 0
	push := func(typeURL string) error {
		a.mu.Lock()
		rs := a.resources[typeURL]
		a.mu.Unlock()
		resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL}
		now := map[string]bool{}
		for _, r := range rs {
			body, err := anypb.New(r)
			if err != nil {
				return err
			}
			nonce++
			now[r.GetName()] = true
			resp.Resources = append(resp.Resources, &discoveryv3.Resource{
				Name: r.GetName(), Version: fmt.Sprint(nonce), Resource: body})
		}
		for name := range subscribed[typeURL] {
			if !now[name] {
				resp.RemovedResources = append(resp.RemovedResources, name)
			}
		}
		subscribed[typeURL] = now
		nonce++
		resp.Nonce = fmt.Sprint(nonce)
		return stream.Send(resp)
	}
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case r := <-reqs:
			a.mu.Lock()
			a.asked++
			a.mu.Unlock()
			if a.Silent {
				continue
			}
			if e := r.GetErrorDetail(); e != nil {
				a.mu.Lock()
				a.nacks = append(a.nacks, r.GetTypeUrl()+": "+e.GetMessage())
				a.mu.Unlock()
			}
			if _, ok := subscribed[r.GetTypeUrl()]; !ok {
				subscribed[r.GetTypeUrl()] = map[string]bool{}
				if err := push(r.GetTypeUrl()); err != nil {
					return err
				}
			}
		case <-changed:
			for typeURL := range subscribed {
				if err := push(typeURL); err != nil {
					return err
				}
			}
		}
	}
}
