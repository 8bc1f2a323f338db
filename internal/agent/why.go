package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/commandline"
	"github.com/legation-io/legation/internal/fault"
)

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
			// What the kernel says is for whoever asks: the machine's owner.
			return nil, fault.New(fault.Unavailable, "process %d cannot be attested: %w", req.Pid, err)
		}
	}
	entries := s.matching(r.Selectors, req.SdsName)
	held := a.manager.Identities()
	for _, e := range entries {
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
	wanted := &nodev1.ExplainRequest{TrustDomain: a.td.Name(), Selectors: r.Selectors, SdsName: req.SdsName}
	if wantsAny(req.SdsName) {
		wanted.SdsName = ""
	}
	answer, err := a.link.Explain(ask, wanted)
	if err == nil {
		for _, c := range answer.Candidates {
			matches := slices.ContainsFunc(r.Identities, func(i *localv1.IdentityStatus) bool { return i.Entry == c.Entry })
			if c.Reason != "it matches" && !matches {
				r.Candidates = append(r.Candidates, c)
			}
		}
	} else {
		r.Candidates = a.manager.Near(r.Selectors)
	}
	if req.SdsName == "" {
		r.Summary = s.summary(req, r, entries)
		if err != nil && len(r.Identities) == 0 {
			r.Summary += " (The control plane does not answer, so only the entries of this node were looked at.)"
		}
		return r, nil
	}
	r.Summary = strings.Join(append([]string{s.sdsSummary(req, r, entries)}, a.envoys.asking(req.SdsName)...), "\n")
	return r, nil
}

// matching is the node's entries for selectors, or those that give an SDS
// name: to a process with the selectors, if there are any.
func (s *agentAdmin) matching(selectors []string, sdsName string) []*nodev1.Entry {
	if sdsName == "" || wantsAny(sdsName) && len(selectors) > 0 {
		return s.agent.manager.Match(selectors)
	}
	view, _ := s.agent.link.View()
	var list []*nodev1.Entry
	for _, e := range view.Entries {
		if named(e, sdsName) && (len(selectors) == 0 || len(lacking(e, selectors)) == 0) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *nodev1.Entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func who(req *localv1.WhyRequest) string {
	if req.Pid != 0 {
		return fmt.Sprintf("Process %d", req.Pid)
	}
	return "A process with these selectors"
}

func (s *agentAdmin) summary(req *localv1.WhyRequest, r *localv1.WhyResponse, entries []*nodev1.Entry) string {
	what := who(req)
	if len(r.Identities) > 0 {
		for i, id := range r.Identities {
			if id.Serial == "" {
				return fmt.Sprintf("%s matches entry %s (%s), and no certificate is held for it now: %s", what, id.Entry, id.SpiffeId, s.without(entries[i]))
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

// without says why no certificate is held for an entry.
func (s *agentAdmin) without(e *nodev1.Entry) string {
	asked, failed := s.agent.manager.Asked(e.Name)
	switch {
	case e.Blocked:
		return "it is revoked and gets none until somebody lifts that: legation lift " + e.SpiffeId
	case failed != nil:
		return commandline.Plain(failed)
	case asked:
		return "it was asked for and is not there yet; see: legation status --node"
	}
	return "nobody has asked for it yet; a program does so at the agent's socket, or legation-agent run does it for one"
}

// sdsSummary answers for an SDS name, asked by a process if one is given.
func (s *agentAdmin) sdsSummary(req *localv1.WhyRequest, r *localv1.WhyResponse, entries []*nodev1.Entry) string {
	asked := len(r.Selectors) > 0
	switch {
	case wantsAny(req.SdsName) && !asked:
		return fmt.Sprintf("The SDS name %q is served to every process that has an identity; ask with --pid for the Envoy's process.", req.SdsName)
	case wantsAny(req.SdsName) && len(entries) > 0:
		return fmt.Sprintf("%s is served %q: it matches entry %s (%s).", who(req), req.SdsName, entries[0].Name, entries[0].SpiffeId)
	case wantsAny(req.SdsName):
		return fmt.Sprintf("%q is not served. %s", req.SdsName, s.summary(req, r, entries))
	case len(entries) > 0 && asked:
		return fmt.Sprintf("%s is served %q: the certificate of %s, by entry %s.", who(req), req.SdsName, entries[0].SpiffeId, entries[0].Name)
	case len(entries) > 0:
		var lines []string
		for _, e := range entries {
			blocked := ""
			if e.Blocked {
				blocked = "; it is revoked and gets none until that is lifted: legation lift " + e.SpiffeId
			}
			lines = append(lines, fmt.Sprintf("The SDS name %q is the certificate of %s, by entry %s, for a process with %s%s.", req.SdsName, e.SpiffeId, e.Name, strings.Join(e.Selectors, ", "), blocked))
		}
		return strings.Join(lines, "\n")
	case len(r.Candidates) > 0:
		c := r.Candidates[0]
		return fmt.Sprintf("%q is not served: entry %s (%s) has that name, but %s.", req.SdsName, c.Entry, c.SpiffeId, c.Reason)
	}
	return fmt.Sprintf("%q is not served: no declared entry has that name. Write it into spec.sdsNames of a WorkloadIdentity, or ask for default.", req.SdsName)
}
