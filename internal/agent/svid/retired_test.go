package svid

import (
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/sealed"
)

func TestANewSessionGoesOnWithWhatTheLastOneLeftWhileNothingCanBeSigned(t *testing.T) {
	for name, restart := range map[string]bool{"in one run": false, "over a restart of the agent": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				box, err := sealed.Open(durable.OS, t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				m := w.run(Params{Sealed: box})
				w.declare(entry("web", "unix:uid:1"))
				s := m.Subscribe(web, "session/one")
				first := w.next(s).SVIDs[0]
				s.Close()
				m.Retire("session/one")
				synctest.Wait()
				if n := len(m.Identities()); n != 0 {
					t.Errorf("%d identities are shown as held by nobody", n)
				}
				w.set(func() { w.down = true })
				if restart {
					w.stop()
					m = w.run(Params{Sealed: box})
				}
				other := m.Subscribe(web, "uid/1") // of another kind
				s = m.Subscribe(web, "session/two")
				if got := w.next(s).SVIDs[0]; got.Serial != first.Serial {
					t.Errorf("the next session has %s, the last one left %s", got.Serial, first.Serial)
				}
				third := m.Subscribe(web, "session/three")
				w.quiet(third, time.Second) // one key for one instance
				w.quiet(other, time.Second)
				w.set(func() { w.down = false })
				if got := w.later(s, time.Minute).SVIDs[0]; got.Serial == first.Serial {
					t.Error("no certificate of its own once it can be signed")
				}
				for _, s := range []*Subscription{s, third, other} {
					s.Close()
				}
			})
		})
	}
}

func TestWhatASessionLeftIsNoGoodOnceItIsTakenAway(t *testing.T) {
	for name, take := range map[string]func(v *upstream.View, serial string){
		"revoked": func(v *upstream.View, serial string) {
			v.Revocations["r"] = &nodev1.Revocation{Id: "r", Serials: []string{serial}}
		},
		"blocked": func(v *upstream.View, _ string) {
			e := entry("web", "unix:uid:1")
			e.Blocked = true
			v.Entries[e.Name] = e
		},
		"issued differently now": func(v *upstream.View, _ string) {
			e := entry("web", "unix:uid:1")
			e.DnsNames = []string{"web.example.org"}
			v.Entries[e.Name] = e
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				m := w.run(Params{})
				w.declare(entry("web", "unix:uid:1"))
				s := m.Subscribe(web, "session/one")
				serial := w.next(s).SVIDs[0].Serial
				s.Close()
				m.Retire("session/one")
				w.set(func() { w.down = true })
				w.change(func(v *upstream.View) { take(v, serial) })
				s = m.Subscribe(web, "session/two")
				time.Sleep(2 * time.Second)
				if n := len(m.Identities()); n != 0 {
					t.Errorf("%d identities are held", n)
				}
				s.Close()
			})
		})
	}
}

// later is next with more patience.
func (w *world) later(s *Subscription, limit time.Duration) *Update {
	w.t.Helper()
	time.Sleep(limit)
	return w.next(s)
}
