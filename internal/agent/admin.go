package agent

import (
	"cmp"
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/agent/session"
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
	for _, h := range view.Heartbeats { // of several authorities the one that is behind counts
		if r.HeartbeatUnix == 0 || h.UnixSeconds < r.HeartbeatUnix {
			r.HeartbeatUnix = h.UnixSeconds
		}
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
		list = append(list, fmt.Sprintf("no control plane answers (%s); what is held is served until it expires. Check that %s can be reached", cmp.Or(r.LastError, "still connecting"), r.Server))
	}
	age := time.Since(time.Unix(r.HeartbeatUnix, 0))
	if r.HeartbeatUnix != 0 && age < -clockSlack {
		list = append(list, fmt.Sprintf("the control plane's clock is %s ahead of this machine's; certificates may be refused as not yet valid. Synchronise both (chrony, systemd-timesyncd); see: legation check", (-age).Round(time.Second)))
	}
	if limit := time.Duration(s.agent.cfg.MaxRevocationAge); r.HeartbeatUnix != 0 && age > limit {
		list = append(list, fmt.Sprintf("the CRL was last confirmed %s ago, more than maxRevocationAge (%s): a revocation may not have arrived%s", age.Round(time.Second), limit, advice(r.Connected)))
	}
	if limit := time.Duration(s.agent.cfg.MaxRevocationAge); r.HeartbeatUnix == 0 && r.Connected && time.Since(time.Unix(r.SinceUnix, 0)) > limit {
		list = append(list, fmt.Sprintf("the CRL was never confirmed since this agent was linked, more than maxRevocationAge (%s) ago: a revocation may not have arrived%s", limit, advice(true)))
	}
	list = append(list, endings(r, time.Now())...)
	view, _ := s.agent.link.View()
	for _, e := range view.Entries {
		if e.Blocked {
			list = append(list, fmt.Sprintf("%s is revoked and gets no certificate until somebody lifts that: legation lift %s", e.SpiffeId, e.SpiffeId))
		}
	}
	list = append(list, s.agent.envoys.asking("")...)
	list = append(list, s.agent.sessions.Problems()...)
	for _, sub := range r.Subscribers {
		for _, st := range sub.States {
			if st.Error != "" {
				list = append(list, fmt.Sprintf("%s (%s, process %d) refused %s and keeps what it had: %s%s", sub.Subscriber, sub.SpiffeId, sub.Pid, st.Name, st.Error, session.Remedy(st.Error)))
			}
		}
	}
	return list
}

// clockSlack is what clocks may differ before it is worth a line.
const clockSlack = 30 * time.Second

// advice is what to do about a CRL that is not confirmed.
func advice(connected bool) string {
	if connected {
		return "; yet the control plane is linked: its clock or this machine's is wrong (legation check), or it cannot sign (its log says)"
	}
	return "; it goes away once the control plane answers again"
}

// endings are certificates that have ended, or that end because they are not
// renewed.
func endings(r *localv1.StatusResponse, now time.Time) []string {
	var list []string
	if end := time.Unix(r.AgentSvidExpiresUnix, 0); r.AgentSvidExpiresUnix != 0 && now.After(end) {
		list = append(list, fmt.Sprintf("the certificate of this node ended %s ago, so the control plane does not know it any more; attest it again: legation token create --node %s, and start the agent with that token", now.Sub(end).Round(time.Second), r.Node))
	}
	for _, i := range r.Identities {
		due, end := time.Unix(i.RenewAtUnix, 0), time.Unix(i.NotAfterUnix, 0)
		if now.After(due.Add(end.Sub(due) / 4)) {
			list = append(list, fmt.Sprintf("the certificate of %s (%s) was due for renewal %s ago and ends in %s; the agent's log says why it is not renewed", i.SpiffeId, i.Instance, now.Sub(due).Round(time.Second), end.Sub(now).Round(time.Second)))
		}
	}
	return list
}
