package svid

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
)

func TestFollowTellsWhenAnIdentityIsTakenAndGivenBack(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		w.next(s)
		type told struct {
			svids int
			err   bool
			at    time.Time
		}
		var heard []told
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Follow(ctx, func(u *Update, err error) { heard = append(heard, told{len(u.SVIDs), err != nil, time.Now()}) })
		}()
		synctest.Wait()
		if len(heard) != 0 {
			t.Errorf("what was given before is told again: %v", heard)
		}
		blocked := entry("web", "unix:uid:1")
		blocked.Blocked = true
		w.declare(blocked)
		synctest.Wait()
		if n := len(heard); n == 0 || !heard[n-1].err || heard[n-1].svids != 0 {
			t.Fatalf("the block is not told: %v", heard)
		}
		// The lift is one View, and no other View follows for a long time.
		lifted := time.Now()
		w.declare(entry("web", "unix:uid:1"))
		time.Sleep(time.Second)
		synctest.Wait()
		if last := heard[len(heard)-1]; last.err || last.svids != 1 || last.at.Sub(lifted) > 100*time.Millisecond {
			t.Errorf("given back after %s: %+v", last.at.Sub(lifted), heard)
		}
		// What verifies peers changes at once too.
		n := len(heard)
		w.change(func(v *upstream.View) { v.CRLs = map[string]*nodev1.CRL{"default": {Authority: "default", Number: 9}} })
		synctest.Wait()
		if len(heard) == n || heard[len(heard)-1].svids != 1 {
			t.Errorf("a new CRL is not told: %v", heard)
		}
		cancel()
		<-done
	})
}
