package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
)

const (
	defaultWait = 5 * time.Second
	maxWait     = 5 * time.Minute
	// settle is how long the counts must stand still, once nobody is
	// missing, for connections' ends to be reported.
	settle = 150 * time.Millisecond
	// maxPause is the longest between two looks at the counts.
	maxPause = 50 * time.Millisecond
)

// Revoke takes certificates or an identity away, and streams how far that
// has come until everybody has it or the wait is over.
func (s *Server) Revoke(req *adminv1.RevokeRequest, stream adminv1.Admin_RevokeServer) error {
	_, err := answer(stream.Context(), s, "revoke", struct{}{}, s.revoke(stream.Context(), req, stream.Send))
	return err
}

func (s *Server) revoke(ctx context.Context, req *adminv1.RevokeRequest, send func(*adminv1.RevokeProgress) error) error {
	arrived := time.Now()
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return err
	}
	r := ca.RevokeRequest{Node: req.Node, Reason: req.Reason, Actor: callers.FromContext(ctx).String()}
	var err error
	if req.Serial != "" {
		if r.Serial, err = s.serial(req.Serial); err != nil {
			return err
		}
	}
	if req.SpiffeId != "" {
		if r.ID, err = spiffeid.FromString(req.SpiffeId); err != nil {
			return fault.New(fault.Invalid, "%q is not a SPIFFE ID: %w", req.SpiffeId, err)
		}
	}
	if err := s.mayRevoke(ctx, r); err != nil {
		return err
	}
	revocation, err := s.p.Authority.Revoke(ctx, r)
	if err != nil {
		return err
	}
	committed := time.Since(arrived)
	s.audit(ctx, "revoked", "id", revocation.Id, "spiffe_id", req.SpiffeId, "node", req.Node, "serial", r.Serial, "serials", len(revocation.Serials), "reason", req.Reason)

	deadline := time.NewTimer(waitFor(req.WaitMillis))
	defer deadline.Stop()
	f := following{deadline: deadline.C}
	var last *adminv1.RevokeProgress
	for {
		changed := s.p.Acks.Watch()
		begun := time.Now()
		p := s.progress(revocation)
		f.look(p, last, begun.Sub(arrived))
		p.CommittedNanos, p.AcknowledgedNanos = committed.Nanoseconds(), f.complete.Nanoseconds()
		if last == nil || !proto.Equal(p, last) {
			if err := send(p); err != nil {
				return err
			}
			last = p
		}
		// A look costs what the fleet's size is: the rest of the time is for
		// those who report.
		pause := time.After(min(4*time.Since(begun), maxPause))
		over, err := f.wait(ctx, changed, nil)
		if err == nil && !over {
			over, err = f.wait(ctx, nil, pause)
		}
		if err != nil {
			return err
		}
		if over {
			p = s.progress(revocation)
			p.CommittedNanos, p.AcknowledgedNanos, p.Done = committed.Nanoseconds(), f.complete.Nanoseconds(), true
			return send(p)
		}
	}
}

// waitFor is how long a caller wants to wait, within bounds.
func waitFor(millis int64) time.Duration {
	if millis <= 0 {
		return defaultWait
	}
	return min(time.Duration(millis)*time.Millisecond, maxWait)
}

// mayRevoke narrows a role that is bound to namespaces: it is enough for what
// is declared and was issued in those alone. Nodes, and the certificates of
// agents and replicas, belong to no namespace.
func (s *Server) mayRevoke(ctx context.Context, r ca.RevokeRequest) error {
	everywhere := callers.Require(ctx, callers.Security, callers.AllNamespaces)
	if everywhere == nil || r.Node != "" {
		return everywhere
	}
	spaces := map[string]bool{}
	records := []ledger.Record{}
	if r.Serial != "" {
		record, err := s.p.Journal.BySerial(r.Serial)
		if err != nil {
			return err
		}
		records = append(records, record)
	} else {
		records, _ = s.p.Journal.List(ledger.Filter{SPIFFEID: r.ID.String()})
		snapshot, _ := s.p.Catalog.Snapshot()
		snapshot.EachIdentity(func(i *catalog.Identity) bool {
			if i.SPIFFEID("") == r.ID.String() {
				spaces[i.Namespace] = true
			}
			return true
		})
	}
	for i := range records {
		if records[i].Profile != string(ca.ProfileWorkload) {
			return everywhere
		}
		spaces[records[i].Namespace] = true
	}
	if len(spaces) == 0 {
		return everywhere
	}
	for _, space := range slices.Sorted(maps.Keys(spaces)) {
		if err := callers.Require(ctx, callers.Security, space); err != nil {
			return err
		}
	}
	return nil
}

// following is the wait for everybody to have a revocation.
type following struct {
	deadline <-chan time.Time
	settled  <-chan time.Time // nil while somebody is missing
	complete time.Duration    // after which nobody was missing; 0: somebody is
}

// look takes the counts of now; last are those of before, nil at first.
func (f *following) look(now, last *adminv1.RevokeProgress, since time.Duration) {
	switch {
	case len(now.Missing) > 0:
		f.complete, f.settled = 0, nil
	case f.complete == 0:
		f.complete, f.settled = since, time.After(settle)
	case now.ConnectionsClosed != last.ConnectionsClosed || now.ConnectionsFailed != last.ConnectionsFailed:
		f.settled = time.After(settle)
	}
}

// wait reports whether the wait is over before there is news or pause ends.
func (f *following) wait(ctx context.Context, news <-chan struct{}, pause <-chan time.Time) (over bool, err error) {
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-f.deadline:
		return true, nil
	case <-f.settled:
		return true, nil
	case <-news:
	case <-pause:
	}
	return false, nil
}

// away names the nodes that may run verifiers and are not connected, except
// those of which a subscriber is named already: a control plane that was
// started again knows nothing of what is behind them.
func (s *Server) away(named []string) []string {
	records, _, _ := s.p.Registry.State()
	here, now := s.presence(), s.p.Clock.Now()
	behind := map[string]bool{} // by node
	for _, subscriber := range named {
		node, _, _ := strings.Cut(subscriber, "/") // which no node's name has
		behind[node] = true
	}
	var list []string
	for name, r := range records {
		_, connected := here[name]
		if !connected && !behind[name] && !r.Banned && r.Serial != "" && !now.After(r.ExpiresAt) {
			list = append(list, name+" (the node is away)")
		}
	}
	slices.Sort(list)
	return list
}

// progress is the ledger's word on one revocation, now.
func (s *Server) progress(r *nodev1.Revocation) *adminv1.RevokeProgress {
	counts := s.p.Acks.CRL(r.CrlNumber)
	p := &adminv1.RevokeProgress{
		Id: r.Id, CrlNumber: r.CrlNumber, Serials: r.Serials,
		Enforcing:    uint32(counts.Classes[nodev1.Class_CLASS_ENFORCING].Reached),
		Acknowledged: uint32(counts.Classes[nodev1.Class_CLASS_ACKNOWLEDGED].Reached),
		Delivered:    uint32(counts.Classes[nodev1.Class_CLASS_DELIVERED].Reached),
		Unknown:      uint32(counts.Classes[nodev1.Class_CLASS_UNKNOWN].Total),
		Missing:      counts.Missing,
	}
	away := s.away(counts.Missing)
	p.Missing = append(p.Missing, away...)
	p.Unknown += uint32(len(away))
	for _, e := range s.p.Acks.Ended(r.Id) {
		p.ConnectionsClosed += e.Closed
		p.ConnectionsFailed += e.Failed
		p.ConnectionsNanos = max(p.ConnectionsNanos, e.TookNanos)
	}
	return p
}

// BanNode bans a node and revokes everything it holds.
func (s *Server) BanNode(ctx context.Context, req *adminv1.BanNodeRequest) (*adminv1.BanNodeResponse, error) {
	r, err := func() (*adminv1.BanNodeResponse, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		actor := callers.FromContext(ctx).String()
		// The ban comes first: what the node could still obtain in between is
		// then found by the revocation.
		if _, err := s.p.Registry.Ban(ctx, req.Name, req.Reason, actor); err != nil {
			return nil, err
		}
		revocation, err := s.p.Authority.Revoke(ctx, ca.RevokeRequest{Node: req.Name, Reason: req.Reason, Actor: actor})
		if err != nil {
			return nil, fmt.Errorf("node %s is banned; revoking its certificates: %w", req.Name, err)
		}
		s.audit(ctx, "node banned", "node", req.Name, "reason", req.Reason, "revoked", len(revocation.Serials))
		record, err := s.p.Registry.Get(ctx, req.Name)
		if err != nil {
			return nil, err
		}
		return &adminv1.BanNodeResponse{Node: s.describe(record, s.presence(), s.subscribers()), RevokedCertificates: uint32(len(revocation.Serials))}, nil
	}()
	return answer(ctx, s, "ban node", r, err)
}

// Lift ends a block, and streams who still enforces it until nobody does or
// the wait is over.
func (s *Server) Lift(req *adminv1.LiftRequest, stream adminv1.Admin_LiftServer) error {
	_, err := answer(stream.Context(), s, "lift", struct{}{}, s.lift(stream.Context(), req, stream.Send))
	return err
}

func (s *Server) lift(ctx context.Context, req *adminv1.LiftRequest, send func(*adminv1.LiftProgress) error) error {
	arrived := time.Now()
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return err
	}
	if req.Node != "" {
		if err := s.liftNode(ctx, req.Node); err != nil {
			return err
		}
		return send(&adminv1.LiftProgress{
			Lifted: fmt.Sprintf("node %s may attest again with a new token: legation token create --node %s", req.Node, req.Node), CommittedNanos: time.Since(arrived).Nanoseconds(), Done: true,
		})
	}
	id, err := spiffeid.FromString(req.SpiffeId)
	if err != nil {
		return fault.New(fault.Invalid, "%q is not a SPIFFE ID: %w", req.SpiffeId, err)
	}
	if err := s.p.Authority.Lift(ctx, id, ""); err != nil {
		return err
	}
	committed := time.Since(arrived)
	s.audit(ctx, "block lifted", "spiffe_id", id.String())

	deadline := time.NewTimer(waitFor(req.WaitMillis))
	defer deadline.Stop()
	f := following{deadline: deadline.C}
	var last *adminv1.LiftProgress
	for over := false; ; {
		changed, pause := s.p.Acks.Watch(), time.After(maxPause) // nodes' own acknowledgements wake nobody
		p := &adminv1.LiftProgress{
			Lifted:  fmt.Sprintf("%s is issued again; its revoked certificates stay revoked", id),
			Missing: s.notServed(id.String()), CommittedNanos: committed.Nanoseconds(),
		}
		p.Done = over || len(p.Missing) == 0
		if last == nil || !proto.Equal(p, last) {
			if err := send(p); err != nil {
				return err
			}
			last = p
		}
		if p.Done {
			return nil
		}
		if over, err = f.wait(ctx, changed, pause); err != nil {
			return err
		}
	}
}

// notServed names who still enforces a block that is lifted: connected nodes
// that were not told or have not acknowledged it, and Envoys that were last
// seen to present a revoked certificate.
func (s *Server) notServed(id string) []string {
	var list []string
	for _, node := range s.p.StillBlocked(id) {
		list = append(list, node+" (the node)")
	}
	state, _ := s.p.Authority.State()
	for _, sub := range s.p.Acks.Subscribers("") {
		if sub.SPIFFEID != id || sub.Away || sub.Served == nil {
			continue
		}
		if _, revoked := state.Revoked(sub.Served.Serial); revoked {
			list = append(list, sub.Node+"/"+sub.Name)
		}
	}
	slices.Sort(list)
	return list
}

func (s *Server) liftNode(ctx context.Context, node string) error {
	blocked := s.p.Authority.Lift(ctx, spiffeid.ID{}, node)
	if blocked != nil && !fault.Is(blocked, fault.NotFound) {
		return blocked
	}
	// A node that was revoked and not banned has its block alone.
	if _, err := s.p.Registry.Lift(ctx, node, callers.FromContext(ctx).String()); err != nil && blocked != nil {
		return err
	}
	s.audit(ctx, "node unbanned", "node", node)
	return nil
}

// presence is which nodes are connected, by name.
func (s *Server) presence() map[string]Presence {
	m := map[string]Presence{}
	for _, p := range s.p.Connected() {
		m[p.Node] = p
	}
	return m
}

// subscribers counts local subscribers by node.
func (s *Server) subscribers() map[string]int {
	m := map[string]int{}
	for _, sub := range s.p.Acks.Subscribers("") {
		m[sub.Node]++
	}
	return m
}
