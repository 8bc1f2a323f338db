package distribute

import (
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLedger(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]Status{}
	e := New(Params{OnStatus: func(lines []Status) {
		mu.Lock()
		defer mu.Unlock()
		for _, l := range lines {
			seen[l.Name] = l
		}
	}})
	v := func(body string) string { return VersionOf([]byte(body)) }
	check := func(when, sent, acked, refusal string) {
		t.Helper()
		got := e.Statuses(Filter{Subscriber: "p", Type: secret, Name: "a"})
		if len(got) != 1 {
			t.Fatalf("%s: %d lines", when, len(got))
		}
		if got[0].Since.IsZero() {
			t.Errorf("%s: no since", when)
		}
		want := Status{Subscriber: "p", Type: secret, Name: "a", Sent: sent, Acked: acked, Error: refusal, Since: got[0].Since}
		if d := cmp.Diff(want, got[0]); d != "" {
			t.Errorf("%s: %s", when, d)
		}
		mu.Lock()
		defer mu.Unlock()
		if d := cmp.Diff(want, seen["a"]); d != "" {
			t.Errorf("%s, as reported: %s", when, d)
		}
	}
	e.Apply(set(all, "a", "1"))
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}})
	ask(t, s, Request{})
	r := now(t, s)
	check("sent", v("1"), "", "")
	ask(t, s, Request{Nonce: r.Nonce})
	check("acknowledged", v("1"), v("1"), "")

	e.Apply(set(all, "a", "2"))
	r = now(t, s)
	check("the next is sent", v("2"), v("1"), "")
	ask(t, s, Request{Nonce: r.Nonce, Error: "bad key"})
	check("a refusal keeps what was acknowledged", v("2"), v("1"), "bad key")
	if got := now(t, s); got != nil {
		t.Errorf("a refused version was sent again: %s", told(got))
	}
	ask(t, s, Request{Nonce: r.Nonce})
	check("an old nonce is ignored", v("2"), v("1"), "bad key")
	ask(t, s, Request{Nonce: "999"})
	check("a forged nonce is ignored", v("2"), v("1"), "bad key")

	e.Apply(set(all, "a", "3"))
	r3 := now(t, s)
	check("after a refusal the acknowledged stays", v("3"), v("1"), "")
	e.Apply(set(all, "a", "4"))
	r4 := now(t, s)
	check("two on the way", v("4"), v("1"), "")
	ask(t, s, Request{Nonce: r3.Nonce})
	if got := e.Statuses(Filter{Name: "a"})[0]; got.Sent != v("4") || got.Acked != v("3") {
		t.Errorf("the first of two acknowledged: %+v", got)
	}
	ask(t, s, Request{Nonce: r4.Nonce, Error: "worse"})
	check("the second refused", v("4"), v("3"), "worse")
	if got := e.Statuses(Filter{Behind: true}); len(got) != 1 {
		t.Errorf("behind: %v", got)
	}
	if got := e.Subscribers(); len(got) != 1 || got[0].Held != 1 || got[0].Behind != 1 {
		t.Errorf("subscribers: %+v", got)
	}
	e.Apply(gone(all, "a"))
	r = now(t, s)
	check("a removal is sent", "", v("3"), "")
	ask(t, s, Request{Nonce: r.Nonce})
	if got := e.Statuses(Filter{}); len(got) != 0 {
		t.Errorf("an acknowledged removal still has lines: %v", got)
	}
	s.Close()
	if got := e.Subscribers(); len(got) != 0 {
		t.Errorf("closed and still there: %v", got)
	}
}
