package server

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/compile"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node"
	"google.golang.org/protobuf/proto"
)

// pusher keeps the engine in step with what is declared and what the
// authority says. Each source has its goroutine; none waits for another.
type pusher struct {
	catalog   *catalog.Catalog
	authority *ca.Authority
	registry  *registry.Registry
	engine    *distribute.Engine
	nodes     *node.Server
	log       *slog.Logger
}

// trust pushes bundle, CRL, revocations and heartbeats, as of one moment. An
// agent is told the CRL first and then what it is for (package node).
func (p *pusher) trust(ctx context.Context) error {
	for {
		state, changed := p.authority.State()
		p.engine.Replace(node.ScopeAll, p.trustResources(state))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (p *pusher) trustResources(state *ca.State) []*distribute.Resource {
	var list []*distribute.Resource
	add := func(typ, name string, m proto.Message) {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			p.log.Error("a trust resource is left out", "type", typ, "name", name, "error", err)
			return
		}
		list = append(list, distribute.NewResource(typ, name, body))
	}
	add("bundle", state.Bundle.TrustDomain, state.Bundle)
	add("crl", state.CRL.Authority, state.CRL)
	if state.Heartbeat != nil {
		add("heartbeat", state.Heartbeat.Authority, state.Heartbeat)
	}
	for id, r := range state.Revocations {
		add("revocation", id, r)
	}
	return list
}

// entries pushes each node its entries, and the policies of what it hosts.
func (p *pusher) entries(ctx context.Context) error {
	var pushed *catalog.Snapshot
	var blocked map[string]bool
	known := map[string]bool{}
	policies := map[string][]*distribute.Resource{} // pushed, by node
	for {
		snapshot, declared := p.catalog.Snapshot()
		state, judged := p.authority.State()
		records, _, joined := p.registry.State()
		reblocked := !maps.Equal(blocked, state.Blocked)
		blocked = state.Blocked
		for name := range records {
			if reblocked || !known[name] {
				// A revocation does not wait until policies are matched anew.
				if !known[name] {
					policies[name] = compile.Policies(snapshot, name)
				}
				known[name] = true
				p.engine.Replace(node.NodeScope(name), append(p.block(compile.Entries(snapshot, name), blocked), policies[name]...))
			}
		}
		if snapshot != pushed {
			delta := p.catalog.Changes(pushed, snapshot)
			for name := range known {
				changes := compile.EntryChanges(snapshot, delta, name, node.NodeScope(name))
				for i := range changes {
					if r := changes[i].Resource; r != nil {
						changes[i].Resource = p.block([]*distribute.Resource{r}, blocked)[0]
					}
				}
				if compile.PoliciesAffected(snapshot, delta, name) {
					now := compile.Policies(snapshot, name)
					changes = append(changes, compile.Diff(node.NodeScope(name), policies[name], now)...)
					policies[name] = now
				}
				p.engine.Apply(changes...)
			}
			if pushed != nil {
				p.nodes.Recompile(func(_ string, subject *nodev1.Subject) bool { return compile.Affected(delta, subject) })
			}
			pushed = snapshot
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-declared:
		case <-judged:
		case <-joined:
		}
	}
}

// block marks the entries of blocked identities. It costs nothing while
// nothing is blocked; what it is given stays as it is.
func (p *pusher) block(list []*distribute.Resource, blocked map[string]bool) []*distribute.Resource {
	if len(blocked) == 0 {
		return list
	}
	out := slices.Clone(list)
	for i, r := range out {
		var e nodev1.Entry
		if err := proto.Unmarshal(r.Body, &e); err != nil || !blocked[e.SpiffeId] {
			continue
		}
		e.Blocked = true
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&e)
		if err != nil {
			p.log.Error("an entry could not be marked as blocked", "entry", e.Name, "error", err)
			continue
		}
		out[i] = distribute.NewResource(r.Type, r.Name, body)
	}
	return out
}

// stillBlocked names the nodes on whose trust stream an entry of the identity
// is blocked, or not yet acknowledged as it is now.
func (p *pusher) stillBlocked(id string) []string {
	var names []string
	snapshot, _ := p.catalog.Snapshot()
	snapshot.EachIdentity(func(i *catalog.Identity) bool {
		if !i.Has(id) {
			return true
		}
		for _, line := range p.engine.Statuses(distribute.Filter{Type: compile.TypeEntry, Name: i.Name}) {
			name := strings.TrimPrefix(line.Subscriber, node.SubscriberID(""))
			r := p.engine.Lookup([]distribute.Scope{node.NodeScope(name)}, compile.TypeEntry, i.Name)
			var e nodev1.Entry
			if r == nil || proto.Unmarshal(r.Body, &e) != nil || e.SpiffeId != id {
				continue
			}
			if e.Blocked || line.Acked != r.Version {
				names = append(names, name)
			}
		}
		return true
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// subjects compiles proxies' configuration for the node door.
type subjects struct{ catalog *catalog.Catalog }

// Compile is a proxy's whole configuration.
func (s subjects) Compile(node string, subject *nodev1.Subject) ([]*distribute.Resource, error) {
	snapshot, _ := s.catalog.Snapshot()
	return compile.Proxy(snapshot, subject, compile.Options{TrustDomain: snapshot.TrustDomain, Node: node, NoIPv6: subject.GetNoIpv6()})
}

// Entry is one registration entry as a node sees it.
func (s subjects) Entry(node, name string) (*nodev1.Entry, error) {
	snapshot, _ := s.catalog.Snapshot()
	if e, ok := snapshot.EntryByName(node, name); ok {
		return e, nil
	}
	return nil, fault.New(fault.NotFound, "no entry %q is parented to node %s", name, node)
}
