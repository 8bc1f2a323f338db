package session

import (
	"context"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/upstream"
)

// ending is one revocation being carried out on this session's connections.
type ending struct {
	arrived        time.Time
	closed, failed uint32
}

// grace is how long a connection that was accepted and that the access log
// has not named yet has to be named before it counts as unknown. Envoy tells
// within 2 ms.
const grace = 25 * time.Millisecond

// watchRevocations ends connections as revocations arrive: at once those that
// are known to be hit, a moment later the accepted ones that nobody could
// name. Those revocations that were there before the session began found no
// connection to end.
func (sn *session) watchRevocations(ctx context.Context) error {
	view, changed := sn.server.p.Views.View()
	known := sn.knownRevocations(view)
	if sn.resumed { // what came while no agent was there is due now
		now := make(chan struct{})
		close(now)
		changed = now
	}
	var unnamed []round // first round done, second due; by date
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-timer.C:
			for len(unnamed) > 0 && !now.Before(unnamed[0].due) {
				sn.endUnnamed(ctx, unnamed[0].of)
				unnamed = unnamed[1:]
			}
			if len(unnamed) > 0 {
				timer.Reset(time.Until(unnamed[0].due))
			}
			continue
		case <-sn.lately:
			sn.endLate(ctx)
			continue
		case <-changed:
		}
		arrived := time.Now()
		view, changed = sn.server.p.Views.View()
		fresh := false
		for id, r := range view.Revocations {
			if !known[id] {
				known[id], fresh = true, true
				if sn.endKnown(ctx, r, arrived) {
					if unnamed = append(unnamed, round{r, time.Now().Add(grace)}); len(unnamed) == 1 {
						timer.Reset(grace)
					}
				}
			}
		}
		if view.Synced { // else some may not have been received yet
			for id := range known {
				if view.Revocations[id] == nil {
					delete(known, id)
					sn.forgetEnding(id)
				}
			}
		}
		if fresh {
			sn.rememberKnown(known)
		}
	}
}

// round is when a revocation's second round is due.
type round struct {
	of  *nodev1.Revocation
	due time.Time
}

// forgetEnding drops what a parent never answered about a revocation that is
// no more.
func (sn *session) forgetEnding(id string) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	delete(sn.closing, id)
}

// knownRevocations need no more be carried out: what was there before the
// session began, or was done under an earlier agent.
func (sn *session) knownRevocations(view *upstream.View) map[string]bool {
	known := map[string]bool{}
	if sn.resumed {
		for _, id := range sn.record.Known {
			known[id] = true
		}
		return known
	}
	for id := range view.Revocations {
		known[id] = true
	}
	if len(known) > 0 {
		sn.rememberKnown(known)
	}
	return known
}

// rememberKnown tells a later agent what need not be done again.
func (sn *session) rememberKnown(known map[string]bool) {
	sn.record.Known = slices.Sorted(maps.Keys(known))
	if err := sn.server.save(sn.id, sn.record); err != nil {
		sn.log.Error("after a restart of the agent, connections may be ended again", "error", err)
	}
}

// hits reports whether a connection is one that the revocation ends: its peer
// is revoked, or this program itself is.
func hits(r *nodev1.Revocation, own string) func(*envoy.Connection) bool {
	serials := make(map[string]bool, len(r.Serials))
	for _, s := range r.Serials {
		serials[envoy.Serial(s)] = true
	}
	return func(c *envoy.Connection) bool {
		if r.SpiffeId != "" && (c.PeerID == r.SpiffeId || own == r.SpiffeId) {
			return true
		}
		return c.PeerSerial != "" && serials[c.PeerSerial]
	}
}

// endKnown ends the connections that are known to be hit, and has the parent
// remember which others there are. It reports false without an Envoy.
func (sn *session) endKnown(ctx context.Context, r *nodev1.Revocation, arrived time.Time) bool {
	var pairs []*localv1.SocketPair
	for _, c := range sn.logs.Table.Open(hits(r, sn.spiffeID())) {
		pairs = append(pairs, pairOf(c.Pair()))
	}
	sn.mu.Lock()
	pid := sn.envoyPID
	if pid != 0 {
		sn.closing[r.Id] = &ending{arrived: arrived}
	}
	sn.mu.Unlock()
	if pid == 0 {
		return false
	}
	if len(pairs) > 0 {
		sn.log.Info("revocation: ending connections", "revocation", r.Id, "of", r.SpiffeId, "connections", len(pairs))
	}
	sn.sendAll(ctx, closeMessage(&localv1.CloseSockets{Id: r.Id, EnvoyPid: pid, Sockets: pairs, InboundPorts: sn.inboundPorts()}))
	return true
}

// endUnnamed ends accepted connections that were there when the revocation
// came and whose peer is still not known, or turned out to be hit.
func (sn *session) endUnnamed(ctx context.Context, r *nodev1.Revocation) {
	hit := hits(r, sn.spiffeID())
	var keep []*localv1.SocketPair
	for _, c := range sn.logs.Table.Open(func(c *envoy.Connection) bool { return c.Direction == envoy.Inbound && !hit(c) }) {
		keep = append(keep, pairOf(c.Pair()))
	}
	sn.mu.Lock()
	pid := sn.envoyPID
	sn.mu.Unlock()
	sn.sendAll(ctx, closeMessage(&localv1.CloseSockets{Id: r.Id, EnvoyPid: pid, Unnamed: true, Keep: keep}))
}

// connected ends a connection that came to be while its peer's revocation
// was on its way.
func (sn *session) connected(c *envoy.Connection) {
	if c.PeerSerial == "" {
		return
	}
	view, _ := sn.server.p.Views.View()
	id, revoked := sn.server.revoked.lookup(view.Revocations, c.PeerSerial)
	if !revoked {
		return
	}
	sn.log.Warn("a revoked peer connected before the CRL was in force; its connection is ended", "peer", c.PeerID, "serial", c.PeerSerial)
	sn.mu.Lock()
	sn.late[id] = append(sn.late[id], pairOf(c.Pair()))
	sn.mu.Unlock()
	select { // whoever reads the log does not wait for the parent
	case sn.lately <- struct{}{}:
	default:
	}
}

// endLate ends what connected found.
func (sn *session) endLate(ctx context.Context) {
	sn.mu.Lock()
	late, pid := sn.late, sn.envoyPID
	sn.late = map[string][]*localv1.SocketPair{}
	sn.mu.Unlock()
	for id, pairs := range late {
		sn.sendAll(ctx, closeMessage(&localv1.CloseSockets{Id: id, EnvoyPid: pid, Sockets: pairs}))
	}
}

// revokedSerials finds a revocation by serial. The index is made again only
// when the revocations are others: Views share what did not change.
type revokedSerials struct {
	mu  sync.Mutex                    // guards what follows
	of  map[string]*nodev1.Revocation // what was indexed, held so that no other map takes its place
	ids map[string]string
}

func (s *revokedSerials) lookup(revocations map[string]*nodev1.Revocation, serial string) (id string, ok bool) {
	if len(revocations) == 0 {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil || reflect.ValueOf(s.of).Pointer() != reflect.ValueOf(revocations).Pointer() {
		s.of, s.ids = revocations, map[string]string{}
		for id, r := range revocations {
			for _, serial := range r.Serials {
				s.ids[envoy.Serial(serial)] = id
			}
		}
	}
	id, ok = s.ids[serial]
	return id, ok
}

// inboundPorts are where this session's Envoy accepts from other machines.
func (sn *session) inboundPorts() []uint32 {
	if sn.start.Mode == nodev1.Mode_MODE_CAPTURE {
		// Redirected connections keep 15006 as the socket's own port.
		return []uint32{15006}
	}
	var ports []uint32
	for _, in := range sn.start.Inbound {
		if _, p, err := net.SplitHostPort(in.Listen); err == nil {
			if n, err := strconv.ParseUint(p, 10, 16); err == nil {
				ports = append(ports, uint32(n))
			}
		}
	}
	return ports
}

func pairOf(p envoy.Pair) *localv1.SocketPair {
	return &localv1.SocketPair{Local: p.Local.String(), Remote: p.Remote.String()}
}

func closeMessage(m *localv1.CloseSockets) *localv1.SessionResponse {
	return &localv1.SessionResponse{Message: &localv1.SessionResponse_Close{Close: m}}
}

// closed takes the parent's answer and reports what was ended so far.
func (sn *session) closed(m *localv1.SocketsClosed) {
	for _, f := range m.Failures {
		sn.log.Error("a connection of a revoked peer could not be ended", "revocation", m.Id, "failure", f)
	}
	sn.mu.Lock()
	e := sn.closing[m.Id]
	if e != nil {
		e.closed += m.Closed
		e.failed += uint32(len(m.Failures))
		if m.Unnamed {
			delete(sn.closing, m.Id)
		}
	}
	sn.mu.Unlock()
	if e == nil || m.Unnamed && m.Closed == 0 && len(m.Failures) == 0 {
		return // the second round found nothing: the first one's time stands
	}
	sn.server.p.Link.Report(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{
		Revocation: m.Id, Subscriber: Subscriber(sn.id), Closed: e.closed, Failed: e.failed, TookNanos: time.Since(e.arrived).Nanoseconds(),
	}}})
}
