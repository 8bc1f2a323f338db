package svid

import (
	"testing"
	"testing/synctest"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
)

// A caller that was told it has nothing must hear of it when it has the same
// again: the SVID of before is kept and is as good as it was.
func TestWhatComesBackAfterAnErrorIsNews(t *testing.T) {
	for _, tt := range []struct {
		name       string
		away, back func(v *upstream.View)
	}{
		{"an entry that was deleted and is declared again",
			func(v *upstream.View) { delete(v.Entries, "default/web") },
			func(v *upstream.View) { v.Entries["default/web"] = entry("web", "unix:uid:1000") }},
		{"an identity that was blocked and is lifted",
			func(v *upstream.View) {
				e := entry("web", "unix:uid:1000")
				e.Blocked = true
				v.Entries["default/web"] = e
			},
			func(v *upstream.View) { v.Entries["default/web"] = entry("web", "unix:uid:1000") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.run(Params{})
				defer w.stop()
				w.declare(entry("web", "unix:uid:1000"), &nodev1.Entry{Name: "default/other", SpiffeId: "spiffe://example.org/other", Selectors: []string{"unix:uid:1"}})
				s := m.Subscribe([]string{"unix:uid:1000"}, "uid/1000")
				defer s.Close()
				first, err := s.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				w.change(tt.away)
				if u, err := s.Next(t.Context()); err == nil {
					t.Fatalf("it has %d SVIDs while it may have none", len(u.SVIDs))
				}
				w.change(tt.back)
				got := make(chan *Update, 1)
				go func() {
					u, err := s.Next(t.Context())
					if err != nil {
						t.Error(err)
					}
					got <- u
				}()
				synctest.Wait()
				select {
				case u := <-got:
					if len(u.SVIDs) != 1 || u.SVIDs[0].ID != first.SVIDs[0].ID {
						t.Errorf("it has %v", u)
					}
				default:
					t.Fatal("it is not told")
				}
			})
		})
	}
}
