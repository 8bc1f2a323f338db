package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Presence is one node that is connected to this replica: its trust stream
// is open.
type Presence struct {
	Node    string
	Serial  string // of the certificate it connected with
	Since   time.Time
	Version string // of its program
}

type presence struct{ Presence }

// present notes a node as connected until the returned func is called.
func (s *Server) present(caller Caller, hello *nodev1.Hello) (gone func()) {
	p := &presence{Presence{Node: caller.Node, Serial: caller.Serial, Since: s.p.Clock.Now(), Version: hello.GetVersion()}}
	s.mu.Lock()
	s.connected[caller.Node] = append(s.connected[caller.Node], p)
	s.metrics.connected.Set(float64(len(s.connected)))
	s.mu.Unlock()
	log := s.p.Log.With("node", p.Node, "serial", p.Serial)
	log.Debug("node connected", "version", shorten(p.Version, 64))
	return func() {
		defer func() { log.Debug("node disconnected", "after", s.p.Clock.Now().Sub(p.Since).Round(time.Millisecond)) }()
		s.mu.Lock()
		defer s.mu.Unlock()
		left := slices.DeleteFunc(s.connected[caller.Node], func(o *presence) bool { return o == p })
		if s.connected[caller.Node] = left; len(left) == 0 {
			delete(s.connected, caller.Node)
		}
		s.metrics.connected.Set(float64(len(s.connected)))
	}
}

// Connected lists the nodes connected to this replica, by name.
func (s *Server) Connected() []Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Presence, 0, len(s.connected))
	for _, streams := range s.connected {
		out = append(out, streams[len(streams)-1].Presence)
	}
	slices.SortFunc(out, func(a, b Presence) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// refused logs and counts a refusal once, at the door, and hands those that
// concern rights to the audit trail. A stream that merely ended is none.
func (s *Server) refused(ctx context.Context, r Refusal) {
	if errors.Is(r.Err, io.EOF) || errors.Is(r.Err, context.Canceled) || status.Code(r.Err) == codes.Canceled {
		return
	}
	if r.Peer == "" {
		if ip := addressOf(ctx); ip.IsValid() {
			r.Peer = ip.String()
		}
	}
	r.Object = shorten(r.Object, 300)
	kind := fault.KindOf(r.Err)
	s.metrics.refused.WithLabelValues(r.Action, string(kind)).Inc()
	if s.p.Refused != nil && (kind == fault.Denied || kind == fault.Invalid || kind == fault.Limited || kind == fault.Conflict) {
		s.p.Refused(ctx, r) // and there it is logged
		return
	}
	level := slog.LevelWarn
	switch kind {
	case fault.Internal:
		level = slog.LevelError
	case fault.Limited, fault.Unavailable:
		level = slog.LevelDebug // a flood must not flood the log; it is counted
	}
	s.p.Log.Log(ctx, level, "refused", "action", r.Action, "node", r.Node, "peer", r.Peer, "object", r.Object, "kind", string(kind), "reason", r.Err)
}

type metrics struct {
	attestations *prometheus.CounterVec
	refused      *prometheus.CounterVec
	connected    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		attestations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_node_attestations_total", Help: "Attestations by outcome: ok, or the kind of refusal."}, []string{"outcome"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_node_refused_total", Help: "Requests of agents refused, by action and kind."}, []string{"action", "kind"}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "legation_nodes_connected", Help: "Nodes whose trust stream is open at this replica."}),
	}
	if r != nil {
		r.MustRegister(m.attestations, m.refused, m.connected)
	}
	return m
}

func (m *metrics) attested(err error) {
	outcome := "ok"
	if err != nil {
		outcome = string(fault.KindOf(err))
	}
	m.attestations.WithLabelValues(outcome).Inc()
}
