package envoy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/telemetry"
)

// Failure is one connection that did not come about, or was refused.
type Failure struct {
	Time      time.Time
	Direction Direction
	Cause     Cause
	// ByPeer says that the other side refused us.
	ByPeer bool
	// Reason is Envoy's own text, or ours where Envoy gives none.
	Reason string
	// Remote is the caller inbound, the endpoint tried outbound.
	Local, Remote, Destination string
	// PeerID and PeerSerial as presented: not verified.
	PeerID, PeerSerial string
	Cluster            string
}

// LogServerParams is what a LogServer needs.
type LogServerParams struct {
	Logger  *slog.Logger
	Clock   clock.Clock // nil is the machine's
	Metrics *Metrics    // nil counts nothing
	// OnConnect is called for each connection that came to be, after it is
	// in the table: a revocation may have been applied meanwhile. It must
	// not block. May be nil.
	OnConnect func(*Connection)
	// Nowhere says what a destination without endpoints lacks. May be nil.
	Nowhere func(destination netip.AddrPort) string
	// OnFailure is called for each failure; it must not block. May be nil.
	OnFailure func(Failure)
}

// LogServer reads the access logs of one session's Envoy. Register it on the
// session's own gRPC server, which only that Envoy can reach.
type LogServer struct {
	accesslogv3.UnimplementedAccessLogServiceServer
	p     LogServerParams
	Table Table

	// Anybody who reaches the port can make failures: the log takes a few of
	// each cause and peer, the counters all.
	talk *telemetry.Sampler

	mu     sync.Mutex // guards recent
	recent []Failure  // the last, newest last
}

// maxRecent bounds the failures that are kept for "why".
const maxRecent = 64

// NewLogServer returns a LogServer with an empty table.
func NewLogServer(p LogServerParams) *LogServer {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	return &LogServer{p: p, talk: telemetry.NewSampler(5, time.Minute)}
}

// Failures returns the last failures, oldest first.
func (s *LogServer) Failures() []Failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Failure(nil), s.recent...)
}

// StreamAccessLogs receives one log of the Envoy. When the stream breaks the
// table stays: the connections may live on.
func (s *LogServer) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	name := ""
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return fmt.Errorf("receive access log %q: %w", name, err)
		}
		if id := m.GetIdentifier(); id != nil {
			name = id.GetLogName()
		}
		switch name {
		case accesslog.Inbound, accesslog.InboundListener, accesslog.Outbound, accesslog.OutboundListener:
		default:
			return status.Errorf(codes.InvalidArgument, "no access log is called %q", clip(name))
		}
		for _, e := range m.GetTcpLogs().GetLogEntry() {
			s.entry(stream.Context(), name, e)
		}
	}
}

func (s *LogServer) entry(ctx context.Context, log string, e *datav3.TCPAccessLogEntry) {
	p := e.GetCommonProperties()
	direction := Inbound
	if log == accesslog.Outbound || log == accesslog.OutboundListener {
		direction = Outbound
	}
	c := read(direction, e)
	if log == accesslog.InboundListener || log == accesslog.OutboundListener {
		if p.GetResponseFlags().GetNoRouteFound() {
			s.unmatched(ctx, c, p)
		}
		return
	}
	switch p.GetAccessLogType() {
	case datav3.AccessLogType_TcpUpstreamConnected:
		s.connected(ctx, c)
	case datav3.AccessLogType_TcpPeriodic:
		s.reminded(c)
	case datav3.AccessLogType_TcpConnectionEnd:
		s.ended(ctx, c, p)
	}
}

func (s *LogServer) connected(ctx context.Context, c *Connection) {
	if !s.Table.add(c) {
		s.p.Logger.WarnContext(ctx, "too many open connections to keep track of; one more goes unwatched", "limit", maxConnections)
	}
	s.p.Metrics.connected(c)
	s.p.Logger.DebugContext(ctx, "connection open", "direction", c.Direction, "peer", c.PeerID, "serial", c.PeerSerial,
		"local", c.Local, "remote", c.Remote, "destination", c.Destination, "upstream", c.UpstreamRemote,
		"tls", c.TLSVersion, "cipher", c.Cipher, "group", c.Group)
	if s.p.OnConnect != nil {
		s.p.OnConnect(c)
	}
}

// reminded takes in a connection that was made while nobody listened.
func (s *LogServer) reminded(c *Connection) {
	if s.Table.has(c.ID) || !c.Pair().Local.IsValid() || !c.Pair().Remote.IsValid() {
		return
	}
	c.Ready = 0 // it was ready at some time before
	if s.Table.add(c) && s.p.OnConnect != nil {
		s.p.OnConnect(c)
	}
}

// unanswered is how soon after the handshake a TLS 1.3 server that refuses
// our certificate has closed.
const unanswered = time.Second

func (s *LogServer) ended(ctx context.Context, c *Connection, p *datav3.AccessLogCommon) {
	open := s.Table.remove(c.ID)
	why := reason(c.Direction, p)
	flags := p.GetResponseFlags()
	cause, byPeer := Classify(c.Direction, c.PeerID, why)
	switch {
	case open != nil:
		if cause == CauseUnauthorized {
			break
		}
		// Without a byte from the program it could as well be a probe of its.
		lived := p.GetDuration().AsDuration()
		if c.Direction == Outbound && open.PeerID != "" && p.GetUpstreamWireBytesReceived() == 0 &&
			p.GetUpstreamWireBytesSent() > 0 && lived-open.Ready < unanswered {
			cause, byPeer = CausePeerClosed, true
			why = "the peer closed right after the handshake without a byte: in TLS 1.3 this is how its refusal of our certificate looks from here; its own log says why"
			break
		}
		return
	case flags.GetNoClusterFound() || flags.GetNoRouteFound():
		cause = CauseUnnamed
		why = "nothing names the destination " + c.Destination.String()
	case c.Direction == Outbound && cause == CauseNone && (flags.GetNoHealthyUpstream() || flags.GetUpstreamConnectionFailure()):
		cause = CauseUnreachable
		if why == "" && flags.GetNoHealthyUpstream() {
			why = "nothing is declared to be there" // Envoy does not name the cluster
			if s.p.Nowhere != nil {
				why = s.p.Nowhere(c.Destination)
			}
		}
	case cause == CauseNone && p.GetUpstreamTransportFailureReason() != "":
		// Inbound: the handshake was good, the program is not there.
		why = clip(p.GetUpstreamTransportFailureReason())
		cause = CauseUnreachable
	case cause == CauseNone:
		// Opened and closed without a word, as probes do.
		s.p.Metrics.handshake(c.Direction, "aborted", CauseNone)
		return
	}
	s.fail(ctx, c, cause, byPeer, why)
}

// unmatched is a connection that no filter chain of the listener took.
func (s *LogServer) unmatched(ctx context.Context, c *Connection, p *datav3.AccessLogCommon) {
	why := reason(c.Direction, p)
	cause, byPeer := Classify(c.Direction, c.PeerID, why)
	if c.Direction == Outbound || cause != CausePlaintext {
		cause = CauseUnnamed
		if why == "" {
			why = "nothing names the destination " + c.Destination.String()
		}
	}
	s.fail(ctx, c, cause, byPeer, why)
}

func (s *LogServer) fail(ctx context.Context, c *Connection, cause Cause, byPeer bool, why string) {
	f := Failure{
		Time: s.p.Clock.Now(), Direction: c.Direction, Cause: cause, ByPeer: byPeer, Reason: why,
		Local: c.Local.String(), Remote: c.Remote.String(), Destination: c.Destination.String(),
		PeerID: c.PeerID, PeerSerial: c.PeerSerial, Cluster: c.UpstreamCluster,
	}
	if c.Direction == Outbound && c.UpstreamRemote.IsValid() {
		f.Remote = c.UpstreamRemote.String()
	}
	result := "refused"
	switch {
	case byPeer:
		result = "refused_by_peer"
	case cause == CauseUnreachable || cause == CauseTimeout:
		result = "failed"
	}
	s.p.Metrics.handshake(c.Direction, result, cause)
	level := slog.LevelWarn
	ok, left := s.talk.Allow(string(f.Direction) + " " + string(cause) + " " + peerOf(f))
	if !ok {
		level = slog.LevelDebug
	}
	s.p.Logger.Log(ctx, level, "connection "+result, "direction", f.Direction, "cause", f.Cause, "reason", f.Reason,
		"remote", f.Remote, "destination", f.Destination, "peer", f.PeerID, "serial", f.PeerSerial, "cluster", f.Cluster, "left_out", left)
	s.mu.Lock()
	if len(s.recent) >= maxRecent {
		s.recent = append(s.recent[:0], s.recent[1:]...)
	}
	s.recent = append(s.recent, f)
	s.mu.Unlock()
	if s.p.OnFailure != nil {
		s.p.OnFailure(f)
	}
}

// peerOf is who it was about, for the log's sampling: the identity presented,
// else the address without its port.
func peerOf(f Failure) string {
	if f.PeerID != "" {
		return f.PeerID
	}
	host, _, err := net.SplitHostPort(f.Remote)
	if err != nil {
		return f.Destination
	}
	return host
}
