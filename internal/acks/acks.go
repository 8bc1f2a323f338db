// Package acks answers "who holds what, and who does not": for every local
// subscriber behind an agent and every resource, what was sent, acknowledged
// or refused, since when, and what a revocation ended. The node door writes
// it, the admin door reads it; neither needs the other.
package acks

import (
	"cmp"
	"strings"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
)

// Params are the inputs of a Ledger; the zero value works.
type Params struct {
	Clock      clock.Clock
	Registerer prometheus.Registerer
	// SubscribersPerNode and StatesPerSubscriber bound what one node may
	// report. Defaults 4096 and 1024.
	SubscribersPerNode  int
	StatesPerSubscriber int
	// BytesPerNode bounds the memory of what one node reported. Default 32 MiB.
	BytesPerNode int
	// EndedPerNode bounds the lines on ended connections that one node has
	// in it, over all revocations. Default 65536.
	EndedPerNode int
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
	ended   map[string]map[endedKey]*nodev1.ConnectionsEnded // by revocation
	order   []string                                         // of ended, oldest first
	endings map[string]int                                   // lines in ended by node
	changed chan struct{}                                    // closed at any change
	dropped prometheus.Counter
}

type nodeAcks struct {
	session     *Session // nil: away
	subscribers map[string]*subscriberAcks
	bytes       int // of what is kept of it
}

type subscriberAcks struct {
	class    nodev1.Class
	spiffeID string
	states   map[stateKey]*nodev1.SubscriberState
	served   *nodev1.ServedCertificate
	away     bool
}

type stateKey struct{ typ, name string }

type endedKey struct{ node, subscriber string }

const (
	perLine    = 256     // bytes of a line besides its text, about
	maxLine    = 8 << 10 // of its text: a name is at most 2048, a SPIFFE ID too
	maxReason  = 512     // kept of a refusal
	maxSerials = 4 << 10 // of what is served
	maxEnded   = 1 << 10 // of a line on ended connections
)

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
	p.BytesPerNode = cmp.Or(p.BytesPerNode, 32<<20)
	p.EndedPerNode = cmp.Or(p.EndedPerNode, 1<<16)
	p.Revocations = cmp.Or(p.Revocations, 4096)
	a := &Ledger{p: p, nodes: map[string]*nodeAcks{}, ended: map[string]map[endedKey]*nodev1.ConnectionsEnded{}, endings: map[string]int{}, changed: make(chan struct{}),
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
		n.forget(name)
	}
	for _, state := range req.GetStates() {
		state.Error = shorten(state.GetError())
		sub := a.subscriberLocked(n, state.GetSubscriber())
		if sub == nil {
			a.dropped.Inc()
			continue
		}
		key := stateKey{state.GetType(), state.GetName()}
		old, size := sub.states[key], sizeOf(state)
		if old == nil && len(sub.states) >= a.p.StatesPerSubscriber || size > maxLine || n.bytes+size-sizeOf(old) > a.p.BytesPerNode {
			a.dropped.Inc()
			continue
		}
		sub.class, sub.spiffeID = state.GetClass(), state.GetSpiffeId()
		n.bytes -= sizeOf(old)
		if state.GetSentVersion() == "" && state.GetAckedVersion() == "" && state.GetError() == "" {
			delete(sub.states, key) // it holds nothing of that name any more
			continue
		}
		n.bytes += size
		sub.states[key] = state
	}
	for _, served := range req.GetServed() {
		if sub := a.subscriberLocked(n, served.GetSubscriber()); sub != nil && proto.Size(served) <= maxSerials {
			sub.served = served
		} else {
			a.dropped.Inc()
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

func (n *nodeAcks) forget(subscriber string) {
	if sub := n.subscribers[subscriber]; sub != nil {
		for _, state := range sub.states {
			n.bytes -= sizeOf(state)
		}
		delete(n.subscribers, subscriber)
	}
}

// sizeOf is about the memory of a line; 0 for none.
func sizeOf(s *nodev1.SubscriberState) int {
	if s == nil {
		return 0
	}
	return proto.Size(s) + perLine
}

func shorten(reason string) string {
	if len(reason) <= maxReason {
		return reason
	}
	return strings.ToValidUTF8(strings.Clone(reason[:maxReason]), "") + "…"
}

func (a *Ledger) endedLocked(node string, e *nodev1.ConnectionsEnded) {
	id, key := e.GetRevocation(), endedKey{node, e.GetSubscriber()}
	_, told := a.ended[id][key]
	if proto.Size(e) > maxEnded || !told && a.endings[node] >= a.p.EndedPerNode {
		a.dropped.Inc()
		return
	}
	if a.ended[id] == nil {
		if len(a.order) >= a.p.Revocations {
			for k := range a.ended[a.order[0]] {
				a.endings[k.node]--
			}
			delete(a.ended, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, id)
		a.ended[id] = map[endedKey]*nodev1.ConnectionsEnded{}
	}
	if !told {
		a.endings[node]++
	}
	// The latest of a subscriber counts: an agent that lost its link tells again.
	a.ended[id][key] = e
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

// Ended lists what subscribers did with a revocation's open connections, in
// no order.
func (a *Ledger) Ended(revocation string) []Ended {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Ended, 0, len(a.ended[revocation]))
	for key, e := range a.ended[revocation] {
		list = append(list, Ended{key.node, e})
	}
	return list
}
