package distribute

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
)

// oracle answers as a control plane built on go-control-plane's Subscription
// would, plus the two sentences of the protocol that Subscription leaves to
// the cache: a name subscribed to (again) is answered, and one that does not
// exist is answered in removed.
type oracle struct {
	sub     stream.Subscription
	open    bool
	forced  map[string]bool
	missing map[string]bool // told that it does not exist
}

func (o *oracle) request(r Request) (empty bool) {
	was := o.open && o.sub.IsWildcard()
	if !o.open {
		o.open = true
		o.sub = stream.NewDeltaSubscription(r.Subscribe, r.Unsubscribe, maps.Clone(r.Initial), true)
	} else {
		before := maps.Clone(o.sub.SubscribedResources())
		o.sub.UpdateResourceSubscriptions(r.Subscribe, r.Unsubscribe)
		for _, name := range r.Subscribe {
			if name != "*" {
				o.forced[name] = true
			}
		}
		if o.sub.IsWildcard() {
			for _, name := range r.Unsubscribe {
				if _, ok := before[name]; ok {
					o.forced[name] = true
				}
			}
		}
	}
	for name := range o.missing {
		if _, ok := o.sub.SubscribedResources()[name]; !ok {
			delete(o.missing, name)
		}
	}
	return o.sub.IsWildcard() && !was
}

func (o *oracle) respond(content map[string]string, empty bool) string {
	var sent, removed []string
	returned := o.sub.ReturnedResources()
	next := map[string]string{}
	names := maps.Clone(o.sub.SubscribedResources())
	if o.sub.IsWildcard() {
		for name := range content {
			names[name] = struct{}{}
		}
		for name := range returned {
			names[name] = struct{}{}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		body, exists := content[name]
		version, known := returned[name]
		_, named := o.sub.SubscribedResources()[name]
		switch {
		case exists:
			if !known || version != VersionOf([]byte(body)) || o.forced[name] {
				sent = append(sent, name+"="+body)
			}
			next[name] = VersionOf([]byte(body))
			delete(o.missing, name)
		case known, named && (!o.missing[name] || o.forced[name]):
			removed = append(removed, "-"+name)
			if named {
				o.missing[name] = true
			}
		}
	}
	clear(o.forced)
	o.sub.SetReturnedResources(next)
	if len(sent)+len(removed) == 0 {
		if empty {
			return "empty"
		}
		return "nothing"
	}
	return strings.Join(append(sent, removed...), " ")
}

func TestRandomRequestsAreAnsweredAsTheOracleWould(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	pick := func(r *rand.Rand, star bool) (out []string) {
		for _, n := range names {
			if r.IntN(4) == 0 {
				out = append(out, n)
			}
		}
		if star && r.IntN(5) == 0 {
			out = slices.Insert(out, r.IntN(len(out)+1), "*")
		}
		return out
	}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 49))
		e := New(Params{})
		s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{web, all}})
		// Half of the seeds share the tables with enough others for an index.
		var others []*Subscriber
		for range seed % 2 * (few + 2) {
			x := e.Attach(SubscriberParams{ID: "x", Scopes: []Scope{all, web}})
			ask(t, x, Request{Subscribe: pick(r, true)})
			others = append(others, x)
		}
		o := &oracle{forced: map[string]bool{}, missing: map[string]bool{}}
		content := map[Scope]map[string]string{all: {}, web: {}}
		var log []string
		for i := range 40 {
			empty := false
			if r.IntN(2) == 0 {
				scope := []Scope{web, all}[r.IntN(2)]
				var changes []Change
				for _, n := range pick(r, false) {
					if r.IntN(3) == 0 {
						delete(content[scope], n)
						changes = append(changes, gone(scope, n))
						continue
					}
					body := fmt.Sprint(r.IntN(3))
					content[scope][n] = body
					changes = append(changes, set(scope, n, body))
				}
				e.Apply(changes...)
				log = append(log, fmt.Sprintf("%d: %s now %v", i, scope, content[scope]))
			} else {
				q := Request{Type: secret, Subscribe: pick(r, true), Unsubscribe: pick(r, true), Initial: map[string]string{"a": VersionOf([]byte("1")), "z": "9"}}
				if !o.open && r.IntN(2) == 0 {
					q.Subscribe = nil
				}
				empty = o.request(q)
				ask(t, s, q)
				log = append(log, fmt.Sprintf("%d: +%v -%v", i, q.Subscribe, q.Unsubscribe))
			}
			if !o.open {
				continue
			}
			seen := maps.Clone(content[all])
			maps.Copy(seen, content[web])
			want := o.respond(seen, empty)
			got := now(t, s)
			log = append(log, "   "+told(got))
			if told(got) != want {
				t.Fatalf("seed %d: told %q, the oracle says %q\n%s", seed, told(got), want, strings.Join(log, "\n"))
			}
			if got != nil && r.IntN(8) > 0 {
				refusal := ""
				if r.IntN(4) == 0 {
					refusal = "no"
				}
				ask(t, s, Request{Nonce: got.Nonce, Error: refusal})
				s.watches[secret].flight = nil // the oracle has no window
			} else if got != nil {
				s.watches[secret].flight = nil
			}
			s.invariants(t)
		}
		s.Close()
		for _, x := range others {
			x.invariants(t)
			x.Close()
		}
		e.Drop(all)
		e.Drop(web)
		if len(e.scopes) != 0 {
			t.Fatalf("seed %d: %d scopes leaked", seed, len(e.scopes))
		}
	}
}

// invariants checks that the index, the marks and the ledger agree.
func (s *Subscriber) invariants(t *testing.T) {
	t.Helper()
	names := 0
	for _, w := range s.order {
		names += len(w.named)
		marks := 0
		for _, m := range w.dirty {
			if m&initial != 0 {
				marks++
			}
		}
		if marks != w.initial {
			t.Fatalf("%d initial marks, %d counted", marks, w.initial)
		}
		for _, tb := range w.tables {
			if !slices.Contains(tb.watches, w) {
				t.Fatal("a watch is not in its table")
			}
			if tb.named == nil {
				continue
			}
			if w.wildcard != slices.Contains(tb.wild, w) {
				t.Fatal("wildcard and index differ")
			}
			indexed := 0
			for _, list := range tb.named {
				for _, o := range list {
					if o == w {
						indexed++
					}
				}
			}
			if indexed != len(w.named) {
				t.Fatalf("%d names, %d in the index", len(w.named), indexed)
			}
		}
		for name, h := range w.held {
			if h.in == nil || !w.wildcard && !w.has(name) {
				t.Fatalf("%s is held for nothing", name)
			}
		}
	}
	if names != s.names {
		t.Fatalf("%d names, %d counted", names, s.names)
	}
}
