package distribute

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	all    = Scope("all")
	web    = Scope("node/web")
	secret = "type/secret"
	other  = "type/other"
)

func res(name, body string) *Resource { return NewResource(secret, name, []byte(body)) }

func set(scope Scope, name, body string) Change {
	return Change{Scope: scope, Resource: res(name, body)}
}

func gone(scope Scope, name string) Change { return Change{Scope: scope, Type: secret, Name: name} }

// told renders a response: "a=1 b=2 -c".
func told(r *Response) string {
	if r == nil {
		return "nothing"
	}
	var parts []string
	for _, x := range r.Resources {
		parts = append(parts, x.Name+"="+string(x.Body))
	}
	for _, name := range r.Removed {
		parts = append(parts, "-"+name)
	}
	if len(parts) == 0 {
		return "empty"
	}
	return strings.Join(parts, " ")
}

// now is what there is to hand out.
func now(t *testing.T, s *Subscriber) *Response {
	t.Helper()
	r, err := s.Poll()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t *testing.T, s *Subscriber, r Request) {
	t.Helper()
	if r.Type == "" {
		r.Type = secret
	}
	if err := s.Request(r); err != nil {
		t.Fatal(err)
	}
}

// step is a request and changes, and then what is told.
type step struct {
	ask    *Request
	change []Change
	want   string
}

func TestSubscriptionRules(t *testing.T) {
	sub := func(names ...string) *Request { return &Request{Subscribe: names} }
	unsub := func(names ...string) *Request { return &Request{Unsubscribe: names} }
	for name, steps := range map[string][]step{
		"a first request without names is a wildcard": {
			{ask: &Request{}, want: "a=1 b=1"},
			{change: []Change{set(all, "c", "1")}, want: "c=1"},
			{change: []Change{gone(all, "a")}, want: "-a"},
		},
		"a wildcard over nothing is answered empty": {
			{change: []Change{gone(all, "a"), gone(all, "b")}, want: "nothing"},
			{ask: &Request{}, want: "empty"},
		},
		"an explicit wildcard is one": {
			{ask: sub("*"), want: "a=1 b=1"},
		},
		"a legacy wildcard stays when names are added": {
			{ask: &Request{}, want: "a=1 b=1"},
			{ask: sub("a"), want: "a=1"},
			{change: []Change{set(all, "b", "2")}, want: "b=2"},
			{ask: unsub("*"), want: "nothing"},
			{change: []Change{set(all, "b", "3"), set(all, "a", "3")}, want: "a=3"},
		},
		"a later request without names is no wildcard": {
			{ask: sub("a"), want: "a=1"},
			{ask: &Request{}, want: "nothing"},
			{ask: unsub("a"), want: "nothing"},
			{ask: &Request{}, want: "nothing"},
			{change: []Change{set(all, "a", "2"), set(all, "b", "2")}, want: "nothing"},
		},
		"unsubscribing a name under a wildcard tells it once more": {
			{ask: sub("*", "a", "x"), want: "a=1 b=1 -x"},
			{ask: unsub("a", "x"), want: "a=1 -x"},
			{change: []Change{set(all, "a", "2")}, want: "a=2"},
		},
		"subscribing again is answered again": {
			{ask: sub("a"), want: "a=1"},
			{ask: sub("a"), want: "a=1"},
			{ask: sub("x"), want: "-x"},
			{ask: sub("x"), want: "-x"},
		},
		"leaving and coming back is answered again": {
			{ask: sub("a"), want: "a=1"},
			{ask: unsub("a"), want: "nothing"},
			{change: []Change{set(all, "a", "2")}, want: "nothing"},
			{ask: sub("a"), want: "a=2"},
		},
		"a name that does not exist is removed once and comes when it exists": {
			{ask: sub("x"), want: "-x"},
			{change: []Change{set(all, "y", "1")}, want: "nothing"},
			{change: []Change{set(all, "x", "1")}, want: "x=1"},
			{change: []Change{gone(all, "x")}, want: "-x"},
			{change: []Change{gone(all, "x")}, want: "nothing"},
		},
		"what the subscriber has is not sent, what is gone is removed": {
			{ask: &Request{Initial: map[string]string{"a": VersionOf([]byte("1")), "b": "old", "z": "1"}}, want: "b=1 -z"},
			{change: []Change{set(all, "a", "2")}, want: "a=2"},
		},
		"initial versions count for names too": {
			{ask: &Request{Subscribe: []string{"a", "b", "z"}, Initial: map[string]string{"a": VersionOf([]byte("1")), "z": "1", "q": "1"}}, want: "b=1 -z"},
		},
		"initial versions are read only once": {
			{ask: sub("a"), want: "a=1"},
			{ask: &Request{Subscribe: []string{"b"}, Initial: map[string]string{"b": VersionOf([]byte("1"))}}, want: "b=1"},
		},
		"a change and back is no change": {
			{ask: &Request{}, want: "a=1 b=1"},
			{change: []Change{set(all, "a", "2"), set(all, "a", "1")}, want: "nothing"},
		},
		"an earlier scope hides a later one": {
			{ask: sub("a"), want: "a=1"},
			{change: []Change{set(web, "a", "mine")}, want: "a=mine"},
			{change: []Change{set(all, "a", "2")}, want: "nothing"},
			{change: []Change{gone(web, "a")}, want: "a=2"},
		},
		"several names change in one response": {
			{ask: &Request{}, want: "a=1 b=1"},
			{change: []Change{set(all, "a", "2"), gone(all, "b"), set(web, "c", "1")}, want: "a=2 c=1 -b"},
		},
		"dropping the wildcard before the first answer leaves the names": {
			{ask: sub("*", "a"), want: "a=1 b=1"},
			{ask: unsub("*"), want: "nothing"},
			{ask: sub("*"), want: "b=1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := New(Params{})
			e.Apply(set(all, "a", "1"), set(all, "b", "1"))
			s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{web, all}})
			defer s.Close()
			for i, st := range steps {
				if st.ask != nil {
					ask(t, s, *st.ask)
				}
				e.Apply(st.change...)
				r := now(t, s)
				if got := told(r); got != st.want {
					t.Fatalf("step %d: told %q, want %q", i, got, st.want)
				}
				if r != nil {
					ask(t, s, Request{Nonce: r.Nonce})
				}
			}
		})
	}
}

func TestReplaceAndDrop(t *testing.T) {
	e := New(Params{})
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{web}})
	defer s.Close()
	ask(t, s, Request{})
	now(t, s)
	for _, c := range []struct {
		content []*Resource
		want    string
	}{
		{[]*Resource{res("a", "1"), res("b", "1"), res("a", "twice")}, "a=1 b=1"},
		{[]*Resource{res("b", "1"), res("a", "1")}, "nothing"},
		{[]*Resource{res("b", "2"), res("c", "1")}, "b=2 c=1 -a"},
		{nil, "-b -c"},
	} {
		e.Replace(web, c.content)
		r := now(t, s)
		if got := told(r); got != c.want {
			t.Errorf("told %q, want %q", got, c.want)
		}
	}
	e.Apply(set(web, "z", "1"))
	if got := told(now(t, s)); got != "z=1" {
		t.Errorf("after an empty scope: %q", got)
	}
	e.Drop(web)
	if got := told(now(t, s)); got != "-z" {
		t.Errorf("after Drop: %q", got)
	}
}

func TestScopesOfASubscriberChange(t *testing.T) {
	e := New(Params{})
	e.Apply(set(all, "a", "1"), set(all, "b", "1"), set(web, "a", "mine"), set(web, "w", "1"))
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}})
	ask(t, s, Request{})
	if got := told(now(t, s)); got != "a=1 b=1" {
		t.Fatal(got)
	}
	s.SetScopes([]Scope{web, all})
	if got := told(now(t, s)); got != "a=mine w=1" {
		t.Errorf("a scope more: %q", got)
	}
	s.SetScopes([]Scope{web})
	if got := told(now(t, s)); got != "-b" {
		t.Errorf("a scope less: %q", got)
	}
	e.Apply(set(all, "b", "2"))
	if got := told(now(t, s)); got != "nothing" {
		t.Errorf("a scope it left: %q", got)
	}
	s.Close()
	e.Drop(all)
	e.Drop(web)
	if len(e.scopes) != 0 {
		t.Errorf("%d scopes remain with nobody in them", len(e.scopes))
	}
}

func TestOnePerResponsePriorityAndSynced(t *testing.T) {
	e := New(Params{})
	e.Apply(set(all, "a", "1"), set(all, "b", "1"), Change{Scope: all, Resource: NewResource(other, "o", nil)})
	s := e.Attach(SubscriberParams{ID: "n", Scopes: []Scope{all}, OnePerResponse: true, Priority: func(typ string) int {
		if typ == other {
			return 0
		}
		return 1
	}})
	defer s.Close()
	ask(t, s, Request{})
	ask(t, s, Request{Type: other})
	var got []string
	for range 3 {
		select {
		case <-s.Synced():
			t.Fatalf("synced after %v", got)
		default:
		}
		r := now(t, s)
		got = append(got, r.Type+" "+fmt.Sprint(len(r.Resources)))
	}
	if want := []string{other + " 1", secret + " 1", secret + " 1"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	select {
	case <-s.Synced():
	default:
		t.Error("everything was told and it is not synced")
	}
}

func TestAResponseIsBounded(t *testing.T) {
	e := New(Params{})
	for i := range 10 {
		e.Apply(set(all, fmt.Sprint("n", i), strings.Repeat("x", 100)))
	}
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}, MaxBytes: 300})
	defer s.Close()
	ask(t, s, Request{})
	total, responses := 0, 0
	for r := now(t, s); r != nil; r = now(t, s) {
		total += len(r.Resources)
		responses++
	}
	if total != 10 || responses != 4 {
		t.Errorf("%d resources in %d responses", total, responses)
	}
}

func TestUnansweredResponsesHoldTheNextBackAndCoalesce(t *testing.T) {
	e := New(Params{})
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}, Window: 1})
	defer s.Close()
	ask(t, s, Request{})
	first := now(t, s)
	for i := range 100 {
		e.Apply(set(all, "a", fmt.Sprint(i)))
	}
	if r := now(t, s); r != nil {
		t.Fatalf("told %q with one unanswered", told(r))
	}
	got := make(chan string)
	go func() {
		r, _ := s.Next(context.Background())
		got <- told(r)
	}()
	ask(t, s, Request{Nonce: first.Nonce})
	select {
	case g := <-got:
		if g != "a=99" {
			t.Errorf("told %q", g)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the answer did not wake Next")
	}
}

func TestLimitsAreTyped(t *testing.T) {
	s := New(Params{}).Attach(SubscriberParams{ID: "p", MaxNames: 2})
	defer s.Close()
	ask(t, s, Request{Subscribe: []string{"a", "b"}})
	if err := s.Request(Request{Type: secret, Subscribe: []string{"a", "c"}}); !fault.Is(err, fault.Limited) {
		t.Errorf("a third name: %v", err)
	}
	ask(t, s, Request{Unsubscribe: []string{"a"}})
	ask(t, s, Request{Subscribe: []string{"c"}})
	if err := s.Request(Request{Type: other, Initial: map[string]string{"a": "", "b": "", "c": ""}}); !fault.Is(err, fault.Limited) {
		t.Errorf("three initial versions: %v", err)
	}
	for i := range maxTypes - 1 {
		ask(t, s, Request{Type: fmt.Sprint("t", i)})
	}
	if err := s.Request(Request{Type: "one more"}); !fault.Is(err, fault.Limited) {
		t.Errorf("a type too many: %v", err)
	}
}

func TestNextEndsWithCloseAndWithItsContext(t *testing.T) {
	s := New(Params{}).Attach(SubscriberParams{ID: "p"})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Next(ctx); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	done := make(chan error)
	go func() { _, err := s.Next(context.Background()); done <- err }()
	s.Close()
	s.Close()
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Errorf("closed: %v", err)
	}
	if err := s.Request(Request{Type: secret}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("request after close: %v", err)
	}
}

func TestA49AuthoriseHidesInsideAScope(t *testing.T) {
	e := New(Params{})
	e.Apply(set(all, "a", "1"), set(all, "b", "1"))
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}, Authorise: func(_, name string) bool { return name == "a" }})
	defer s.Close()
	ask(t, s, Request{Subscribe: []string{"*", "b"}})
	if got := told(now(t, s)); got != "a=1 -b" {
		t.Errorf("told %q", got)
	}
	ask(t, s, Request{Unsubscribe: []string{"b"}})
	if got := told(now(t, s)); got != "-b" {
		t.Errorf("told %q", got)
	}
}

func TestResendRepeatsOnlyWhatIsWatchedByName(t *testing.T) {
	e := New(Params{})
	e.Apply(set(all, "a", "1"), set(all, "b", "1"))
	s := e.Attach(SubscriberParams{ID: "p", Scopes: []Scope{all}})
	defer s.Close()
	ask(t, s, Request{Subscribe: []string{"a", "x"}})
	now(t, s)
	s.Resend(secret, "a", "b")
	s.Resend(other, "a")
	if got := told(now(t, s)); got != "a=1" {
		t.Errorf("told %q", got)
	}
}
