package distribute

import (
	"fmt"
	"runtime"
	"testing"
)

// A proxy of a mesh of 200 services: their clusters by wildcard, their
// endpoints and its secrets by name. 50 KB is the budget for all that a proxy
// costs the control plane.
func TestASubscriberOf200ServicesCostsLittle(t *testing.T) {
	const subscribers = 500
	e := New(Params{})
	var names []string
	for i := range 200 {
		name := fmt.Sprintf("outbound|8080||service-%d.namespace.svc", i)
		names = append(names, name)
		e.Apply(Change{Scope: all, Resource: NewResource("cluster", name, make([]byte, 500))},
			Change{Scope: all, Resource: NewResource("endpoints", name, make([]byte, 500))})
	}
	e.Apply(set(all, "ROOTCA", "1"))
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var list []*Subscriber
	for i := range subscribers {
		s := e.Attach(SubscriberParams{ID: fmt.Sprint("p", i), Scopes: []Scope{Scope(fmt.Sprint("proxy/", i)), all}})
		list = append(list, s)
		ask(t, s, Request{Type: "cluster"})
		ask(t, s, Request{Type: "endpoints", Subscribe: names})
		ask(t, s, Request{Subscribe: []string{"ROOTCA", "default"}})
		for r := now(t, s); r != nil; r = now(t, s) {
			ask(t, s, Request{Type: r.Type, Nonce: r.Nonce})
		}
	}
	each := (heap() - before) / subscribers
	t.Logf("%d bytes per subscriber", each)
	if each > 50<<10 {
		t.Errorf("a subscriber costs %d bytes; the budget is 50 KB", each)
	}
	for _, s := range list {
		s.Close()
	}
	if n := len(e.scopes); n != 1 {
		t.Errorf("%d scopes remain", n)
	}
}
