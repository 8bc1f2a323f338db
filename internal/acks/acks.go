// Package acks answers "who holds what, and who does not": for every local
// subscriber behind an agent and every resource, what was sent, acknowledged
// or refused, since when, and what a revocation ended. The node door writes
// it, the admin door reads it; neither needs the other.
package acks

import (
	"cmp"
	"slices"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
)

// Params are the inputs of a Ledger; the zero value works.
type Params struct {
	Clock      clock.Clock
	Registerer prometheus.Registerer
	// SubscribersPerNode and StatesPerSubscriber bound what one node may
	// report. Defaults 4096 and 1024.
	SubscribersPerNode  int
	StatesPerSubscriber int
	// Revocations whose ended connections are remembered, the newest.
	// Default 4096.
	Revocations int
}

// Ledger is the control plane's acknowledgement ledger of what lies behind the
// agents: for every local subscriber and resource what was sent,
// acknowledged or refused, since when; and what revocations ended. What the
// agents themselves acknowledged is in the engine's own ledger.
type Ledger struct {
	p Params

	mu      sync.Mutex // guards all below
	nodes   map[string]*nodeAcks
	ended   map[string][]Ended // by revocation
	order   []string           // of ended, oldest first
	changed chan struct{}      // closed at any change
	dropped prometheus.Counter
}

type nodeAcks struct {
	session     *Session // nil: away
	subscribers map[string]*subscriberAcks
}

type subscriberAcks struct {
	class    nodev1.Class
	spiffeID string
	states   map[stateKey]*nodev1.SubscriberState
	served   *nodev1.ServedCertificate
	away     bool
}

type stateKey struct{ typ, name string }

// Ended is what one subscriber did with a revocation's open connections.
type Ended struct {
	Node string
	*nodev1.ConnectionsEnded
}

// New returns an empty ledger.
func New(p Params) *Ledger {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	p.SubscribersPerNode = cmp.Or(p.SubscribersPerNode, 4096)
	p.StatesPerSubscriber = cmp.Or(p.StatesPerSubscriber, 1024)
	p.Revocations = cmp.Or(p.Revocations, 4096)
	a := &Ledger{p: p, nodes: map[string]*nodeAcks{}, ended: map[string][]Ended{}, changed: make(chan struct{}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_reports_dropped_total", Help: "Reported lines dropped because a node is over its limits."})}
	if p.Registerer != nil {
		p.Registerer.MustRegister(a.dropped, collector{a})
	}
	return a
}

// Session is one report stream.
type Session struct {
	acks *Ledger
	node string
}

// Open begins a node's report stream: it replaces the one before.
func (a *Ledger) Open(node string) *Session {
	s := &Session{acks: a, node: node}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nodes[node] = &nodeAcks{session: s, subscribers: map[string]*subscriberAcks{}}
	a.changedLocked()
	return s
}

// Close marks the node's subscribers as away, unless a newer stream has
// replaced this one. They are counted as unknown until the node is back.
func (s *Session) Close() {
	a := s.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[s.node]
	if n == nil || n.session != s {
		return
	}
	n.session = nil
	for _, sub := range n.subscribers {
		sub.away = true
	}
	a.changedLocked()
}

// Forget drops a node that will not come back.
func (a *Ledger) Forget(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.nodes, node)
	a.changedLocked()
}

// Apply takes one report: who is gone first, then what is.
func (s *Session) Apply(req *nodev1.ReportRequest) error {
	a := s.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.nodes[s.node]
	if n == nil || n.session != s {
		return fault.New(fault.Unavailable, "a newer report stream of node %s has replaced this one", s.node)
	}
	for _, name := range req.GetGone() {
		delete(n.subscribers, name)
	}
	for _, state := range req.GetStates() {
		sub := a.subscriberLocked(n, state.GetSubscriber())
		key := stateKey{state.GetType(), state.GetName()}
		if sub == nil || sub.states[key] == nil && len(sub.states) >= a.p.StatesPerSubscriber {
			a.dropped.Inc()
			continue
		}
		sub.class, sub.spiffeID = state.GetClass(), state.GetSpiffeId()
		if state.GetSentVersion() == "" && state.GetAckedVersion() == "" && state.GetError() == "" {
			delete(sub.states, key) // it holds nothing of that name any more
			continue
		}
		sub.states[key] = state
	}
	for _, served := range req.GetServed() {
		if sub := a.subscriberLocked(n, served.GetSubscriber()); sub != nil {
			sub.served = served
		}
	}
	for _, ended := range req.GetEnded() {
		a.endedLocked(s.node, ended)
	}
	a.changedLocked()
	return nil
}

func (a *Ledger) subscriberLocked(n *nodeAcks, name string) *subscriberAcks {
	sub := n.subscribers[name]
	if sub == nil {
		if name == "" || len(name) > 256 || len(n.subscribers) >= a.p.SubscribersPerNode {
			return nil
		}
		sub = &subscriberAcks{states: map[stateKey]*nodev1.SubscriberState{}}
		n.subscribers[name] = sub
	}
	return sub
}

func (a *Ledger) endedLocked(node string, e *nodev1.ConnectionsEnded) {
	id := e.GetRevocation()
	if _, ok := a.ended[id]; !ok {
		if len(a.order) >= a.p.Revocations {
			delete(a.ended, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, id)
	}
	list := a.ended[id]
	// The latest of a subscriber counts: an agent that lost its link tells again.
	i := slices.IndexFunc(list, func(o Ended) bool { return o.Node == node && o.GetSubscriber() == e.GetSubscriber() })
	if i >= 0 {
		list[i] = Ended{node, e}
	} else if len(list) < 1<<16 {
		a.ended[id] = append(list, Ended{node, e})
	}
}

func (a *Ledger) changedLocked() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Watch returns a channel that is closed at the next change.
func (a *Ledger) Watch() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Ended lists what subscribers did with a revocation's open connections.
func (a *Ledger) Ended(revocation string) []Ended {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.ended[revocation])
}
