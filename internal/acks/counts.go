package acks

import (
	"slices"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// Subscriber is one local subscriber as its node reports it.
type Subscriber struct {
	Node     string
	Name     string // unique on the node
	Class    nodev1.Class
	SPIFFEID string
	// Away: its node is not connected; what it holds is not known.
	Away bool
	// CRLNumber is the lowest CRL number among its acknowledged resources that
	// carry one; 0 when none does.
	CRLNumber uint64
	// Pending is how many resources were sent and are not acknowledged.
	Pending int
	// Error is why it refused, if it did.
	Error  string
	Served *nodev1.ServedCertificate // may be nil
	States []*nodev1.SubscriberState // by type and name; not to be changed
}

func (s Subscriber) id() string { return s.Node + "/" + s.Name }

// Subscribers lists all subscribers of a node ("" lists all nodes'), by node
// and name.
func (a *Ledger) Subscribers(node string) []Subscriber {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Subscriber
	for name, n := range a.nodes {
		if node != "" && node != name {
			continue
		}
		for id, sub := range n.subscribers {
			out = append(out, sub.describe(name, id, true))
		}
	}
	slices.SortFunc(out, func(a, b Subscriber) int { return strings.Compare(a.id(), b.id()) })
	return out
}

func (s *subscriberAcks) describe(node, name string, states bool) Subscriber {
	out := Subscriber{Node: node, Name: name, Class: s.class, SPIFFEID: s.spiffeID, Away: s.away, Served: s.served}
	for _, state := range s.states {
		if n := state.GetAckedCrlNumber(); n > 0 && (out.CRLNumber == 0 || n < out.CRLNumber) {
			out.CRLNumber = n
		}
		if state.GetSentVersion() != state.GetAckedVersion() {
			out.Pending++
		}
		if state.GetError() != "" {
			out.Error = state.GetError()
		}
		if states {
			out.States = append(out.States, state)
		}
	}
	slices.SortFunc(out.States, func(a, b *nodev1.SubscriberState) int {
		if c := strings.Compare(a.GetType(), b.GetType()); c != 0 {
			return c
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
	return out
}

// Count is how many subscribers of a class there are, and how many of
// them hold at least the CRL asked for.
type Count struct{ Total, Reached int }

// Counts is how far a CRL has come.
type Counts struct {
	Classes map[nodev1.Class]Count
	// Missing names subscribers that do not hold it, "<node>/<subscriber>",
	// sorted. Away are those among them whose node is not connected; they are
	// counted in CLASS_UNKNOWN.
	Missing []string
	Away    []string
}

// CRL counts who holds the CRL with that number, or a later one. A
// subscriber without any resource that carries a CRL, and with nothing
// pending, verifies nobody and is not counted.
func (a *Ledger) CRL(number uint64) Counts {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := Counts{Classes: map[nodev1.Class]Count{}}
	for node, n := range a.nodes {
		for name, s := range n.subscribers {
			sub := s.describe(node, name, false)
			if sub.CRLNumber == 0 && sub.Pending == 0 && sub.Error == "" {
				continue
			}
			class := sub.Class
			if sub.Away {
				class = nodev1.Class_CLASS_UNKNOWN
				out.Away = append(out.Away, sub.id())
			}
			count := out.Classes[class]
			count.Total++
			if sub.CRLNumber >= number && !sub.Away {
				count.Reached++
			} else {
				out.Missing = append(out.Missing, sub.id())
			}
			out.Classes[class] = count
		}
	}
	slices.Sort(out.Missing)
	slices.Sort(out.Away)
	return out
}
