package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/acks"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/ledger"
)

// ListNodes lists attested nodes.
func (s *Server) ListNodes(ctx context.Context, req *adminv1.ListNodesRequest) (*adminv1.ListNodesResponse, error) {
	r, err := func() (*adminv1.ListNodesResponse, error) {
		if err := s.checkTrustDomain(req.TrustDomain); err != nil {
			return nil, err
		}
		if req.Name != "" {
			record, err := s.p.Registry.Get(ctx, req.Name)
			if err != nil {
				return nil, err
			}
			return &adminv1.ListNodesResponse{Nodes: []*adminv1.Node{s.describe(record, s.presence(), s.subscribers())}}, nil
		}
		nodes, err := s.nodes(ctx)
		return &adminv1.ListNodesResponse{Nodes: nodes}, err
	}()
	return answer(ctx, s, "list nodes", r, err)
}

func (s *Server) nodes(ctx context.Context) ([]*adminv1.Node, error) {
	records, err := s.p.Registry.List(ctx)
	if err != nil {
		return nil, err
	}
	here, subs := s.presence(), s.subscribers()
	nodes := make([]*adminv1.Node, len(records))
	for i, r := range records {
		nodes[i] = s.describe(r, here, subs)
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].Name < nodes[j].Name })
	return nodes, nil
}

func (s *Server) describe(r registry.Record, here map[string]Presence, subs map[string]int) *adminv1.Node {
	snapshot, _ := s.p.Catalog.Snapshot()
	n := &adminv1.Node{
		Name: r.Name, SpiffeId: r.SPIFFEID, Method: r.Method, AttestedAtUnix: r.AttestedAt.Unix(), Serial: r.Serial,
		ExpiresAtUnix: r.ExpiresAt.Unix(), Banned: r.Banned, BanReason: r.BanReason,
		Subscribers: uint32(subs[r.Name]), Entries: uint32(len(snapshot.IdentitiesFor(r.Name))),
	}
	if r.ExpiresAt.IsZero() {
		n.ExpiresAtUnix = 0
	}
	if p, ok := here[r.Name]; ok {
		n.Connected, n.SinceUnix, n.Version = true, p.Since.Unix(), p.Version
	}
	return n
}

// maxServiceProblems bounds what a status tells of services.
const maxServiceProblems = 20

// soon is when an authority's end is worth a problem line.
const soon = 30 * 24 * time.Hour

// Status tells what runs, what is attached, what is behind, what is wrong.
func (s *Server) Status(ctx context.Context, req *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	r, err := s.status(ctx, req)
	return answer(ctx, s, "status", r, err)
}

func (s *Server) status(ctx context.Context, req *adminv1.StatusRequest) (*adminv1.StatusResponse, error) {
	if err := s.checkTrustDomain(req.TrustDomain); err != nil {
		return nil, err
	}
	revision, err := s.p.Store.Revision(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	now := s.p.Clock.Now()
	state, _ := s.p.Authority.State()
	issuing, root := s.p.Authority.Chain()
	records, valid := s.p.Journal.List(ledger.Filter{Kind: ledger.KindX509, ExpiresFrom: now})
	revoked := uint32(0)
	for i := range records {
		if _, ok := state.Revoked(records[i].Serial); ok {
			revoked++
		}
	}
	r := &adminv1.StatusResponse{
		TrustDomain: s.p.TrustDomain.Name(), Version: s.p.Version, StartedAtUnix: s.p.Started.Unix(), StoreRevision: revision,
		Authorities: []*adminv1.AuthorityStatus{{
			Name: s.p.Authority.Name(), RootExpiresUnix: root.NotAfter.Unix(), IssuingExpiresUnix: issuing.NotAfter.Unix(),
			CrlNumber: state.CRL.Number, Revoked: revoked,
		}},
		Nodes: nodes, CertificatesValid: uint32(valid) - revoked, CertificatesRevoked: revoked, Resources: map[string]uint32{},
	}
	snapshot, _ := s.p.Catalog.Snapshot()
	for kind, n := range snapshot.Counts() {
		r.Resources[kind] = uint32(n)
	}
	var wrong []string
	if s.p.Renewals != nil {
		for _, c := range s.p.Renewals() {
			st := describeRenewal(c)
			r.Renewals = append(r.Renewals, st)
			if line := renewalProblem(st); line != "" {
				wrong = append(wrong, line)
			}
		}
	}
	for _, sub := range s.p.Acks.Subscribers("") {
		r.Subscribers++
		if line := presented(sub); line != "" {
			wrong = append(wrong, line)
		}
		for _, st := range sub.States {
			if st.Error != "" || st.SentVersion != st.AckedVersion {
				r.Behind = append(r.Behind, &adminv1.BehindStatus{Node: sub.Node, State: st, WantedVersion: st.SentVersion})
			}
		}
	}
	r.Problems = append(s.problems(now, r), wrong...)
	for _, id := range slices.Sorted(maps.Keys(state.Blocked)) {
		r.Problems = append(r.Problems, fmt.Sprintf("%s is revoked and gets no certificate until somebody lifts that: legation lift %s", id, id))
	}
	for _, q := range snapshot.Quarantined() {
		r.Problems = append(r.Problems, fmt.Sprintf("stored %s %s/%s cannot be read and is not in force: %s; apply it again", q.Kind, q.Namespace, q.Name, q.Reason))
	}
	told := 0
	for _, svc := range snapshot.Services() {
		for _, p := range svc.Problems {
			if told++; told <= maxServiceProblems {
				r.Problems = append(r.Problems, fmt.Sprintf("service %s: %s", svc.Host(), p))
			}
		}
	}
	if told > maxServiceProblems {
		r.Problems = append(r.Problems, fmt.Sprintf("%d more problems of services", told-maxServiceProblems))
	}
	for _, st := range s.p.Engine.Statuses(distribute.Filter{}) {
		if st.Error != "" {
			r.Problems = append(r.Problems, fmt.Sprintf("%s refuses %s %s: %s", st.Subscriber, st.Type, st.Name, st.Error))
		}
	}
	return r, nil
}

func (s *Server) problems(now time.Time, r *adminv1.StatusResponse) []string {
	var list []string
	if _, err := s.p.Journal.Guard().Check(); err != nil {
		list = append(list, err.Error())
	}
	for _, a := range r.Authorities {
		if left := time.Unix(a.IssuingExpiresUnix, 0).Sub(now); left < soon {
			list = append(list, fmt.Sprintf("the issuing CA of authority %s ends in %s: what it signs gets shorter and shorter lives, and this version cannot make the next one; upgrade to one that rotates before then", a.Name, days(left)))
		}
		if left := time.Unix(a.RootExpiresUnix, 0).Sub(now); left < soon {
			list = append(list, fmt.Sprintf("the root of authority %s ends in %s, and with it everything below; this version cannot make the next one; upgrade to one that rotates before then", a.Name, days(left)))
		}
	}
	for _, n := range r.Nodes {
		switch {
		case n.Banned, n.Connected:
		case n.ExpiresAtUnix != 0 && time.Unix(n.ExpiresAtUnix, 0).Before(now):
			list = append(list, fmt.Sprintf("node %s is away and its certificate has expired; attest it again: legation token create --node %s", n.Name, n.Name))
		default:
			list = append(list, fmt.Sprintf("node %s is away; it serves what it has until that expires. On the node: legation status --node", n.Name))
		}
	}
	for _, b := range r.Behind {
		if b.State.Error != "" {
			list = append(list, fmt.Sprintf("%s on %s refused %s and keeps what it had: %s; on the node, legation status --node says what to do", b.State.Subscriber, b.Node, b.State.Name, b.State.Error))
		}
	}
	return list
}

// days is a long time as people say it.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// presented says what is wrong with the certificate that a subscriber was seen
// to present; "" is nothing. What a node that is away serves is not known.
func presented(sub acks.Subscriber) string {
	c := sub.Served
	if c == nil || sub.Away || c.IssuedSerial == "" || c.Serial == c.IssuedSerial {
		return ""
	}
	return fmt.Sprintf("%s on %s (%s) presents certificate %.16s although it acknowledged %.16s; on the node, legation status --node says what to do", sub.Name, sub.Node, c.SpiffeId, c.Serial, c.IssuedSerial)
}
