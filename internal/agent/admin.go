package agent

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/version"
)

// agentAdmin answers the machine's owner.
type agentAdmin struct {
	localv1.UnimplementedAgentAdminServer
	agent *agent
}

func (s *agentAdmin) check(trustDomain string) error {
	if trustDomain != "" && trustDomain != s.agent.td.Name() {
		return fault.GRPC(fault.New(fault.Invalid, "this agent is of trust domain %s, not %s", s.agent.td.Name(), trustDomain))
	}
	return nil
}

// Connections lists who is on each connection of this machine's Envoys.
func (s *agentAdmin) Connections(_ context.Context, req *localv1.ConnectionsRequest) (*localv1.ConnectionsResponse, error) {
	if err := s.check(req.TrustDomain); err != nil {
		return nil, err
	}
	return s.agent.sessions.Connections(req), nil
}

// Status tells what this agent knows and serves, and what is wrong.
func (s *agentAdmin) Status(_ context.Context, req *localv1.StatusRequest) (*localv1.StatusResponse, error) {
	if err := s.check(req.TrustDomain); err != nil {
		return nil, err
	}
	a := s.agent
	view, _ := a.link.View()
	r := &localv1.StatusResponse{
		TrustDomain: a.td.Name(), Version: version.Version, StartedAtUnix: a.started.Unix(),
		Connected: view.Connected, SinceUnix: view.Since.Unix(), LastError: view.LastError, Entries: uint32(len(view.Entries)),
		Identities:  a.manager.Identities(),
		Subscribers: append(a.sessions.Status(), a.envoys.status()...),
		Server:      strings.Join(a.cfg.Servers, ", "),
	}
	sort.Slice(r.Subscribers, func(i, j int) bool { return r.Subscribers[i].Subscriber < r.Subscribers[j].Subscriber })
	for _, c := range view.CRLs {
		r.CrlNumber = max(r.CrlNumber, c.Number)
	}
	for _, h := range view.Heartbeats {
		r.HeartbeatUnix = max(r.HeartbeatUnix, h.UnixSeconds)
	}
	if id, _ := a.link.Identity(); id != nil {
		r.SpiffeId, r.AgentSvidExpiresUnix = id.ID.String(), id.NotAfter().Unix()
		if name, err := attestnode.NameOf(a.td, id.ID); err == nil {
			r.Node = name
		}
	}
	r.Problems = s.problems(r)
	return r, nil
}

func (s *agentAdmin) problems(r *localv1.StatusResponse) []string {
	var list []string
	if !r.Connected {
		list = append(list, fmt.Sprintf("no control plane answers (%s); what is held is served until it expires. Check that %s can be reached", r.LastError, r.Server))
	}
	age := time.Since(time.Unix(r.HeartbeatUnix, 0))
	if limit := time.Duration(s.agent.cfg.MaxRevocationAge); r.HeartbeatUnix != 0 && age > limit {
		list = append(list, fmt.Sprintf("the CRL was last confirmed %s ago, more than maxRevocationAge (%s): a revocation may not have arrived", age.Round(time.Second), limit))
	}
	view, _ := s.agent.link.View()
	for _, e := range view.Entries {
		if e.Blocked {
			list = append(list, fmt.Sprintf("%s is revoked and gets no certificate until somebody lifts that: legation lift %s", e.SpiffeId, e.SpiffeId))
		}
	}
	for _, sub := range r.Subscribers {
		for _, st := range sub.States {
			if st.Error != "" {
				list = append(list, fmt.Sprintf("%s refused %s: %s", sub.Subscriber, st.Name, st.Error))
			}
		}
	}
	return list
}

// Why explains an identity, or the lack of one.
func (s *agentAdmin) Why(ctx context.Context, req *localv1.WhyRequest) (*localv1.WhyResponse, error) {
	if err := s.check(req.TrustDomain); err != nil {
		return nil, err
	}
	r, err := s.why(ctx, req)
	return r, fault.GRPC(err)
}

func (s *agentAdmin) why(ctx context.Context, req *localv1.WhyRequest) (*localv1.WhyResponse, error) {
	a := s.agent
	r := &localv1.WhyResponse{Pid: req.Pid, Selectors: req.Selectors}
	if req.Pid != 0 {
		caller, err := a.attestor.FromPID(int(req.Pid))
		if err != nil {
			return nil, fault.New(fault.NotFound, "process %d: %w", req.Pid, err)
		}
		defer caller.Close()
		if r.Selectors, err = caller.Selectors(ctx); err != nil {
			return nil, fmt.Errorf("process %d: %w", req.Pid, err)
		}
	}
	held := a.manager.Identities()
	for _, e := range s.matching(r.Selectors, req.SdsName) {
		status := &localv1.IdentityStatus{SpiffeId: e.SpiffeId, Entry: e.Name}
		for _, h := range held {
			if h.Entry == e.Name {
				status = h
			}
		}
		r.Identities = append(r.Identities, status)
	}
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer, err := a.link.Explain(ask, &nodev1.ExplainRequest{TrustDomain: a.td.Name(), Selectors: r.Selectors, SdsName: req.SdsName})
	if err == nil {
		for _, c := range answer.Candidates {
			if c.Reason != "it matches" {
				r.Candidates = append(r.Candidates, c)
			}
		}
	} else {
		r.Candidates = a.manager.Near(r.Selectors)
	}
	r.Summary = summary(req, r)
	return r, nil
}

// matching is the node's entries for selectors, or for an SDS name.
func (s *agentAdmin) matching(selectors []string, sdsName string) []*nodev1.Entry {
	if sdsName == "" {
		return s.agent.manager.Match(selectors)
	}
	view, _ := s.agent.link.View()
	var list []*nodev1.Entry
	for _, e := range view.Entries {
		named := e.SpiffeId == sdsName
		for _, n := range e.SdsNames {
			named = named || n == sdsName
		}
		if named {
			list = append(list, e)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

func summary(req *localv1.WhyRequest, r *localv1.WhyResponse) string {
	what := "A process with these selectors"
	switch {
	case req.SdsName != "":
		what = fmt.Sprintf("The SDS name %q", req.SdsName)
		switch req.SdsName {
		case "default", "ROOTCA", "ALL":
			return what + " is served to every process that has an identity; ask with --pid for the Envoy's process."
		}
	case req.Pid != 0:
		what = fmt.Sprintf("Process %d", req.Pid)
	}
	if len(r.Identities) > 0 {
		for _, id := range r.Identities {
			if id.Serial == "" {
				return fmt.Sprintf("%s matches entry %s (%s), and no certificate is held for it now: it is revoked and blocked, or not signed yet; see: legation status --node", what, id.Entry, id.SpiffeId)
			}
		}
		ids := make([]string, len(r.Identities))
		for i, id := range r.Identities {
			ids[i] = id.SpiffeId + " by entry " + id.Entry
		}
		return what + " gets " + strings.Join(ids, ", and ") + "."
	}
	if len(r.Candidates) == 0 {
		return what + " has no identity, and no declared entry comes near. Declare one: legation apply -f FILE with a WorkloadIdentity that has some of these selectors."
	}
	c := r.Candidates[0]
	return fmt.Sprintf("%s has no identity. The nearest entry is %s (%s): %s.", what, c.Entry, c.SpiffeId, c.Reason)
}
