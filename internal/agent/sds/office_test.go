package sds

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	theirs   = distribute.Scope("session/theirs")
	unheard  = "type.googleapis.com/nobody.knows.v9.This"
	patience = 30 * time.Second
)

// office is a door with a client, without an Envoy.
type office struct {
	*testing.T
	engine *distribute.Engine
	server *Server
	log    *logBuffer
	ctx    context.Context
	conn   *grpc.ClientConn
	done   chan struct{} // ends attachments

	mu     sync.Mutex
	nodes  []string
	closed int
}

func newOffice(t *testing.T, maxNames int) *office {
	o := &office{T: t, engine: distribute.New(distribute.Params{}), log: &logBuffer{}, done: make(chan struct{})}
	o.server = New(Params{
		Engine: o.engine, MaxNames: maxNames, Registerer: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(o.log, nil)),
		Authorise: func(context.Context) (*Attachment, error) {
			return &Attachment{
				Subscriber: "me", Scopes: []distribute.Scope{mine}, Done: o.done,
				Missing:       func(_, name string) string { return "no entry has " + name },
				OnRequestNode: func(id string) { o.mu.Lock(); o.nodes = append(o.nodes, id); o.mu.Unlock() },
				Closed:        func() { o.mu.Lock(); o.closed++; o.mu.Unlock() },
			}, nil
		},
	})
	conn, err := grpc.NewClient("unix:"+serve(t, o.server), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	o.conn, o.ctx = conn, ctx
	return o
}

func (o *office) set(scope distribute.Scope, typ, name, body string) {
	o.engine.Apply(distribute.Change{Scope: scope, Resource: distribute.NewResource(typ, name, []byte(body))})
}

func (o *office) unset(scope distribute.Scope, typ, name string) {
	o.engine.Apply(distribute.Change{Scope: scope, Type: typ, Name: name})
}

type deltaClient struct {
	*testing.T
	grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
}

func (o *office) delta() deltaClient {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(o.conn).DeltaAggregatedResources(o.ctx)
	if err != nil {
		o.Fatal(err)
	}
	return deltaClient{o.T, s}
}

// expect receives, compares and acknowledges: "a=1 -b".
func (c deltaClient) expect(want string) {
	c.Helper()
	m, err := c.Recv()
	if err != nil {
		c.Fatalf("waiting for %q: %v", want, err)
	}
	var parts []string
	for _, r := range m.Resources {
		if r.Resource.TypeUrl != m.TypeUrl || r.Version != distribute.VersionOf(r.Resource.Value) {
			c.Errorf("%s: type %s, version %s", r.Name, r.Resource.TypeUrl, r.Version)
		}
		parts = append(parts, r.Name+"="+string(r.Resource.Value))
	}
	for _, name := range m.RemovedResources {
		parts = append(parts, "-"+name)
	}
	if got := strings.Join(parts, " "); got != want {
		c.Fatalf("told %q, want %q", got, want)
	}
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce})
}

func (c deltaClient) ask(m *discoveryv3.DeltaDiscoveryRequest) {
	c.Helper()
	if m.TypeUrl == "" {
		m.TypeUrl = TypeSecret
	}
	if err := c.Send(m); err != nil {
		c.Fatal(err)
	}
}

type sotwClient struct {
	*testing.T
	grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	names map[string][]string
}

func (o *office) sotw() *sotwClient {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(o.conn).StreamAggregatedResources(o.ctx)
	if err != nil {
		o.Fatal(err)
	}
	return &sotwClient{o.T, s, map[string][]string{}}
}

func (c *sotwClient) ask(typ, nonce string, names ...string) {
	c.Helper()
	c.names[typ] = names
	if err := c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typ, ResponseNonce: nonce, ResourceNames: names}); err != nil {
		c.Fatal(err)
	}
}

func (c *sotwClient) expect(want ...string) *discoveryv3.DiscoveryResponse {
	c.Helper()
	m, err := c.Recv()
	if err != nil {
		c.Fatalf("waiting for %v: %v", want, err)
	}
	var got []string
	for _, r := range m.Resources {
		got = append(got, string(r.Value))
	}
	if !slices.Equal(got, want) || m.VersionInfo == "" || m.Nonce == "" {
		c.Fatalf("told %v (version %q, nonce %q), want %v", got, m.VersionInfo, m.Nonce, want)
	}
	return m
}

func (c *sotwClient) ack(m *discoveryv3.DiscoveryResponse) {
	c.Helper()
	c.ask(m.TypeUrl, m.Nonce, c.names[m.TypeUrl]...)
}

func (o *office) until(what string, f func() bool) {
	o.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			o.Fatalf("waited in vain until %s; log:\n%s", what, o.log)
		}
	}
}

func (o *office) line(name string) (l distribute.Status) {
	if lines := o.engine.Statuses(distribute.Filter{Name: name}); len(lines) > 0 {
		l = lines[0]
	}
	return l
}
