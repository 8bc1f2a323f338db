// Package sds is the door that Envoys speak to over gRPC: the aggregated
// discovery service and the secret discovery service, each incremental and
// state-of-the-world, and unary FetchSecrets. It translates between xDS and
// distribute.Engine; who may see what is decided by whoever authorises the
// stream, by its scopes.
package sds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// Type URLs that this package knows.
const (
	TypeSecret   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

const (
	maxMessage = 4 << 20 // bytes of one request
	maxName    = 2048    // bytes of a resource name; a SPIFFE ID has at most that
	maxReason  = 1024    // bytes kept of a refusal
	maxNodeID  = 256     // bytes kept of a node id
)

// Attachment is what a stream may see, as decided by Params.Authorise.
type Attachment struct {
	// Subscriber names the stream in the acknowledgement ledger.
	Subscriber string
	// Scopes it sees, the first wins.
	Scopes []distribute.Scope
	// Missing explains why a name cannot be served; for log and error texts.
	// May be nil. It is called outside locks.
	Missing func(typeURL, name string) string
	// OnRequestNode is told the node id that the stream claims, once. It is
	// only for display: nothing may be decided by it. May be nil.
	OnRequestNode func(nodeID string)
	// Done, if set, ends the stream when it is closed.
	Done <-chan struct{}
	// Closed is called when the stream has ended. May be nil.
	Closed func()
}

// Params are a Server's inputs.
type Params struct {
	Engine *distribute.Engine
	// Authorise decides by the connection (never by what the caller says)
	// who calls. Its error is what the caller reads.
	Authorise func(ctx context.Context) (*Attachment, error)
	// MaxNames bounds the names one stream subscribes to; 0 is
	// distribute.DefaultMaxNames.
	MaxNames int
	Log      *slog.Logger
	// Metrics are shared by Servers; nil counts into Metrics of its own,
	// registered with Registerer.
	Metrics    *Metrics
	Registerer prometheus.Registerer
}

// Server serves xDS streams.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	p       Params
	metrics *Metrics
	talk    *telemetry.Sampler // callers decide how often they are refused
	readers sync.WaitGroup
}

// New returns a Server. It starts nothing.
func New(p Params) *Server {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.MaxNames == 0 {
		p.MaxNames = distribute.DefaultMaxNames
	}
	if p.Metrics == nil {
		p.Metrics = NewMetrics(p.Registerer)
	}
	return &Server{p: p, metrics: p.Metrics, talk: telemetry.NewSampler(20, time.Minute)}
}

// Register adds ADS and SDS to a gRPC server, which should have been made
// with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	secretv3.RegisterSecretDiscoveryServiceServer(r, s)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// ServerOptions bound what a caller may send, and what an idle one costs:
// gRPC's own buffers would be 64 KB per connection. A server made with them
// stops when its handlers have returned; then Wait is sound.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(1024), grpc.ConnectionTimeout(10 * time.Second),
		grpc.ReadBufferSize(4 << 10),
	}
}

// Wait returns when every stream's goroutine has ended. Call it after the
// gRPC server was stopped.
func (s *Server) Wait() { s.readers.Wait() }

// peer is one authorised stream.
type peer struct {
	server *Server
	sub    *distribute.Subscriber
	at     *Attachment
	log    *slog.Logger

	node      sync.Once
	explained map[string]struct{} // type and name of what was logged as missing; used by the writer only
}

// door is the translation of one protocol. receive takes one request off the
// stream, send puts a response on it; each has one goroutine.
type door struct {
	protocol string
	window   int
	maxBytes int
	receive  func(*peer) error
	send     func(*peer, *distribute.Response) error
}

// run serves a stream to its end.
func (s *Server) run(ctx context.Context, d door) error {
	at, err := s.p.Authorise(ctx)
	if err != nil {
		s.metrics.denied.Inc()
		s.warn(s.p.Log, "denied", "stream denied", "protocol", d.protocol, "error", err)
		return fault.GRPC(err)
	}
	if at.Closed != nil {
		defer at.Closed()
	}
	s.metrics.streams.WithLabelValues(d.protocol).Inc()
	defer s.metrics.streams.WithLabelValues(d.protocol).Dec()
	sub := s.p.Engine.Attach(distribute.SubscriberParams{
		ID: at.Subscriber, Scopes: at.Scopes, MaxNames: s.p.MaxNames,
		Window: d.window, MaxBytes: d.maxBytes, Priority: rank,
	})
	defer sub.Close()
	p := &peer{
		server: s, sub: sub, at: at, explained: make(map[string]struct{}),
		log: s.p.Log.With("subscriber", at.Subscriber, "protocol", d.protocol),
	}
	p.log.Debug("stream opened")

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.readers.Add(1)
	go func() { // ends when the stream does; Wait waits for it
		defer s.readers.Done()
		for {
			if err := d.receive(p); err != nil {
				cancel(err)
				return
			}
		}
	}()
	if at.Done != nil {
		s.readers.Add(1)
		go func() {
			defer s.readers.Done()
			select {
			case <-at.Done:
				cancel(fault.New(fault.Denied, "what entitled %s to this stream has ended", at.Subscriber))
			case <-ctx.Done():
			}
		}()
	}
	for {
		r, err := sub.Next(ctx)
		if err == nil {
			err = d.send(p, r)
		}
		if err == nil && r.Type == typeCluster {
			p.sub.Resend(typeEndpoint, endpointNames(r.Resources)...)
		}
		if err == nil {
			continue
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if fault.Is(err, fault.Limited) || fault.Is(err, fault.Denied) || fault.Is(err, fault.Invalid) {
			s.warn(p.log, "ended", "stream ended", "error", err)
		} else {
			p.log.Debug("stream ended", "error", err)
		}
		return fault.GRPC(err)
	}
}

// warn logs what a caller can bring about at will: a sample of each kind, with
// how many were left out.
func (s *Server) warn(log *slog.Logger, kind, text string, args ...any) {
	level := slog.LevelWarn
	ok, left := s.talk.Allow(kind)
	if !ok {
		level = slog.LevelDebug
	}
	if left > 0 {
		args = append(args, "left_out", left)
	}
	log.Log(context.Background(), level, text, args...)
}

// rank is the order in which an Envoy warms: secrets before who needs them,
// then "make before break" (xDS protocol, "Eventual consistency
// considerations").
func rank(typeURL string) int {
	switch typeURL {
	case TypeSecret:
		return 0
	case typeCluster:
		return 1
	case typeEndpoint:
		return 2
	case typeListener:
		return 3
	}
	return 4
}
