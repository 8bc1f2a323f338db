package admin

import (
	"context"
	"fmt"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	defaultWait = 5 * time.Second
	maxWait     = 5 * time.Minute
	// settle is how long the counts must stand still, once nobody is
	// missing, for connections' ends to be reported.
	settle = 150 * time.Millisecond
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
	revocation, err := s.p.Authority.Revoke(ctx, r)
	if err != nil {
		return err
	}
	committed := time.Since(arrived)
	s.audit(ctx, "revoked", "id", revocation.Id, "spiffe_id", req.SpiffeId, "node", req.Node, "serial", r.Serial, "serials", len(revocation.Serials), "reason", req.Reason)

	wait := time.Duration(req.WaitMillis) * time.Millisecond
	if wait <= 0 {
		wait = defaultWait
	}
	wait = min(wait, maxWait)
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	var settled <-chan time.Time
	complete := time.Duration(0)
	for {
		changed := s.p.Acks.Watch()
		p := s.progress(revocation)
		p.CommittedNanos = committed.Nanoseconds()
		if len(p.Missing) == 0 && complete == 0 {
			complete = time.Since(arrived)
			settled = time.After(settle)
		}
		if len(p.Missing) > 0 {
			complete, settled = 0, nil
		}
		p.AcknowledgedNanos = complete.Nanoseconds()
		if err := send(p); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			continue
		case <-deadline.C:
		case <-settled:
		}
		p = s.progress(revocation)
		p.CommittedNanos, p.AcknowledgedNanos, p.Done = committed.Nanoseconds(), complete.Nanoseconds(), true
		return send(p)
	}
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

// Lift ends a block.
func (s *Server) Lift(ctx context.Context, req *adminv1.LiftRequest) (*adminv1.LiftResponse, error) {
	r, err := func() (*adminv1.LiftResponse, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		actor := callers.FromContext(ctx).String()
		if req.Node != "" {
			if err := s.p.Authority.Lift(ctx, spiffeid.ID{}, req.Node); err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
			if _, err := s.p.Registry.Lift(ctx, req.Node, actor); err != nil {
				return nil, err
			}
			s.audit(ctx, "node unbanned", "node", req.Node)
			return &adminv1.LiftResponse{Lifted: fmt.Sprintf("node %s may attest again with a new token: legation token create --node %s", req.Node, req.Node)}, nil
		}
		id, err := spiffeid.FromString(req.SpiffeId)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%q is not a SPIFFE ID: %w", req.SpiffeId, err)
		}
		if err := s.p.Authority.Lift(ctx, id, ""); err != nil {
			return nil, err
		}
		s.audit(ctx, "block lifted", "spiffe_id", id.String())
		return &adminv1.LiftResponse{Lifted: fmt.Sprintf("%s is issued again; its revoked certificates stay revoked", id)}, nil
	}()
	return answer(ctx, s, "lift", r, err)
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
