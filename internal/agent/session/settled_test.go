package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestAResumedSessionServesOnceItsConfigurationIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sn := &session{configured: make(chan struct{}, 1)}
		settled := make(chan bool, 1)
		go func() { settled <- sn.settled(t.Context()) }()
		want := func(when string, done bool) {
			t.Helper()
			synctest.Wait()
			if got := len(settled) == 1; got != done {
				t.Errorf("%s: settled %v", when, got)
			}
		}
		time.Sleep(time.Hour)
		want("nothing has come", false)
		for range 5 { // a large one comes in parts
			sn.noteConfigured()
			time.Sleep(60 * time.Millisecond)
			want("parts still come", false)
		}
		time.Sleep(50 * time.Millisecond)
		want("all parts have come", true)
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if (&session{configured: make(chan struct{}, 1)}).settled(ctx) {
			t.Error("a session that ended is settled")
		}
	})
}
