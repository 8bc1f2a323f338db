package distribute

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Many writers, many readers, scopes that come and go: in the end each
// subscriber holds exactly what it may see, and the ledger says so.
func TestAStormEndsWithEveryoneInStep(t *testing.T) {
	const subscribers, writers, rounds, names = 40, 4, 300, 20
	var mu sync.Mutex
	reported := map[string]Status{}
	e := New(Params{OnStatus: func(lines []Status) {
		mu.Lock()
		defer mu.Unlock()
		for _, l := range lines {
			reported[l.Subscriber+" "+l.Name] = l
		}
	}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	type reader struct {
		sub  *Subscriber
		mu   sync.Mutex
		have map[string]string
	}
	var readers []*reader
	var reading, writing sync.WaitGroup
	for i := range subscribers {
		r := &reader{have: map[string]string{}, sub: e.Attach(SubscriberParams{
			ID: fmt.Sprint("p", i), Scopes: []Scope{Scope(fmt.Sprint("node/", i%5)), all}, OnePerResponse: i%4 == 0, Window: 1 + i%3})}
		readers = append(readers, r)
		ask(t, r.sub, Request{})
		reading.Go(func() {
			for {
				m, err := r.sub.Next(ctx)
				if err != nil {
					return
				}
				r.mu.Lock()
				for _, x := range m.Resources {
					r.have[x.Name] = string(x.Body)
				}
				for _, name := range m.Removed {
					delete(r.have, name)
				}
				r.mu.Unlock()
				if err := r.sub.Request(Request{Type: secret, Nonce: m.Nonce}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				scope := []Scope{all, "node/0", "node/1", "node/2", "node/3", "node/4"}[r.IntN(6)]
				name := fmt.Sprint("n", r.IntN(names))
				switch r.IntN(10) {
				case 0:
					readers[r.IntN(subscribers)].sub.SetScopes([]Scope{Scope(fmt.Sprint("node/", r.IntN(5))), all})
				case 1:
					e.Replace(scope, []*Resource{res(name, "replaced"), res("always", "here")})
				case 2, 3:
					e.Apply(gone(scope, name))
				case 4:
					e.Statuses(Filter{Behind: true})
					e.Subscribers()
				default:
					e.Apply(set(scope, name, fmt.Sprint(r.IntN(1000))))
				}
			}
		})
	}
	writing.Wait()
	inStep := func(r *reader) string {
		r.sub.mu.Lock()
		var scopes []Scope
		for _, sc := range r.sub.scopes {
			scopes = append(scopes, sc.name)
		}
		r.sub.mu.Unlock()
		want := map[string]string{}
		for _, x := range e.List(scopes, secret) {
			want[x.Name] = string(x.Body)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if !maps.Equal(want, r.have) {
			return fmt.Sprintf("%s has %v, should have %v", r.sub.id, r.have, want)
		}
		lines := e.Statuses(Filter{Subscriber: r.sub.id})
		for _, l := range lines {
			if l.Sent != l.Acked || l.Sent != VersionOf([]byte(want[l.Name])) {
				return fmt.Sprintf("the ledger says %+v", l)
			}
			mu.Lock()
			same := reported[l.Subscriber+" "+l.Name] == l
			mu.Unlock()
			if !same {
				return fmt.Sprintf("reported otherwise: %+v", l)
			}
		}
		if len(lines) != len(want) {
			return fmt.Sprintf("%d lines for %d resources", len(lines), len(want))
		}
		return ""
	}
	for _, r := range readers {
		why := inStep(r)
		for why != "" && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			why = inStep(r)
		}
		if why != "" {
			t.Fatal(why)
		}
		select {
		case <-r.sub.Synced():
		default:
			t.Errorf("%s is not synced", r.sub.id)
		}
	}
	for _, r := range readers {
		r.sub.Close()
	}
	reading.Wait()
}
