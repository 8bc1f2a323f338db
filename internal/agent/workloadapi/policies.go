package workloadapi

import (
	"context"
	"slices"
	"strings"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/binding"
	"github.com/legation-io/legation/internal/fault"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// policies is the service legation.workload.v1.Policies: the declared policies
// that bind one of the caller's identities.
type policies struct {
	workloadv1.UnimplementedPoliciesServer
	s *Server
}

// Watch pushes the whole set, and again whenever it changes, while the caller
// has a right to the identity.
func (p policies) Watch(r *workloadv1.WatchPoliciesRequest, stream grpc.ServerStreamingServer[workloadv1.PolicySet]) error {
	ctx := stream.Context()
	return p.s.answer(ctx, workloadv1.Policies_Watch_FullMethodName, p.s.pushPolicies(ctx, r.GetSpiffeId(), stream.Send))
}

func (s *Server) pushPolicies(ctx context.Context, spiffeID string, send func(*workloadv1.PolicySet) error) error {
	c, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	defer c.bind()()
	entries, err := c.entries(spiffeID)
	if err != nil {
		return c.because(err)
	}
	as := entries[0]
	held := 0
	defer func() { s.policyBytes.swap(as.Name, held, 0) }()
	var last []*nodev1.Policy
	sent := false
	for {
		view, changed := s.p.Views.View()
		entry := view.Entries[as.Name]
		if sent && (entry == nil || entry.SpiffeId != as.SpiffeId) {
			return fault.New(fault.Denied, "entry %s is no longer %s on this node", as.Name, as.SpiffeId)
		}
		if sent && !c.has(entry.GetSelectors()) {
			return fault.New(fault.Denied, "entry %s is no longer for this process: its selectors changed", as.Name)
		}
		// A set that was not yet received is no set: an empty one would deny.
		if now := binds(view, as); view.Synced && (!sent || !slices.Equal(last, now)) {
			if err := c.same(); err != nil {
				return err
			}
			set := composePolicies(now)
			size := proto.Size(set)
			if !s.policyBytes.swap(as.Name, held, size) {
				return fault.New(fault.Limited, "limited: the policies of entry %s have %d bytes, and those who watch them hold %d of them at most; watch once in a process, or declare less", as.Name, size, maxEntryPolicyBytes)
			}
			held = size
			if err := send(set); err != nil {
				return err
			}
			last, sent = now, true
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return c.because(c.ctx.Err())
		}
	}
}

// has says whether the caller is one of an entry with these selectors.
func (c *call) has(selectors []string) bool {
	return len(selectors) > 0 && !slices.ContainsFunc(selectors, func(s string) bool { return !slices.Contains(c.selectors, s) })
}

// What is sent to a program that does not read stays in the agent's memory.
const (
	maxPolicyBytes      = 256 << 20 // of all who watch
	maxEntryPolicyBytes = maxPolicyBytes / 4
)

// policyBytes counts what is sent to those who watch, while they do.
type policyBytes struct {
	mu    sync.Mutex // guards what follows
	all   int
	entry map[string]int // by entry
}

// swap replaces what one of an entry's holds; more is refused where that is
// too much.
func (b *policyBytes) swap(entry string, old, size int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	more := size - old
	if more > 0 && (b.all+more > maxPolicyBytes || b.entry[entry]+more > maxEntryPolicyBytes) {
		return false
	}
	if b.entry == nil {
		b.entry = map[string]int{}
	}
	b.all += more
	if b.entry[entry] += more; b.entry[entry] == 0 {
		delete(b.entry, entry)
	}
	return true
}

// binds are the policies about an identity, by name.
func binds(view *upstream.View, e *nodev1.Entry) []*nodev1.Policy {
	var found []*nodev1.Policy
	for _, p := range view.Policies {
		if binding.Binds(p.GetNamespace(), p.GetSubjects(), e.GetNamespace(), e.GetSpiffeId()) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, func(a, b *nodev1.Policy) int { return strings.Compare(a.GetName(), b.GetName()) })
	return found
}

func composePolicies(all []*nodev1.Policy) *workloadv1.PolicySet {
	set := &workloadv1.PolicySet{Policies: make([]*workloadv1.Policy, len(all))}
	for i, p := range all {
		set.Policies[i] = &workloadv1.Policy{Name: p.GetName(), Version: p.GetVersion(), Modules: p.GetModules(),
			RegoVersion: p.GetRegoVersion(), Data: p.GetData(), Query: p.GetQuery()}
	}
	return set
}
