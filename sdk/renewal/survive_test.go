package renewal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnIssuanceIsFinishedWithinTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		w.ca.lean(func(ca *watchful) { ca.takes = 20 * time.Second })
		w.start()
		sleep(5 * time.Second)
		began := time.Now()
		w.stop()
		if took := time.Since(began); took != 15*time.Second {
			t.Errorf("it drained for %s", took)
		}
		if w.revision("a") != 1 || w.get("a").Status.Condition(Issuing) != nil {
			t.Errorf("after the drain: %+v", w.get("a").Status)
		}
	})
}

// TestAnIssuanceThatIsCancelledIsTakenUpAgain: with a Finder the CA issues
// once, whenever the scheduler was stopped.
func TestAnIssuanceThatIsCancelledIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Drain = 10 * time.Second }, certificate("a"))
		w.ca.lean(func(ca *watchful) { ca.takes = time.Minute }) // the challenge
		w.start()
		sleep(5 * time.Second)
		began := time.Now()
		w.stop()
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it drained for %s", took)
		}
		c := w.want("a", Issuing, True, ReasonDoesNotExist)
		if c.Status.FailedIssuanceAttempts != nil {
			t.Error("what was cancelled counts as a failure")
		}
		next, err := w.store.GetSecret(t.Context(), "default", "a.next-private-key")
		if err != nil {
			t.Fatal(err)
		}
		w.start()
		sleep(2 * time.Minute)
		w.want("a", Ready, True, ReasonReady)
		if e := w.ca.seen(); len(e) != 1 || e[0].id != next.Annotations[annotationRequest] || w.ca.count("found") != 1 {
			t.Errorf("the CA issued %v and was asked %d times what became of it", e, w.ca.count("found"))
		}
		w.stop()
	})
}

func TestAnAnswerThatWasLostIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		w.ca.lost = func(*Request) error { return errors.New("connection reset by peer") }
		w.start()
		w.want("a", Issuing, False, ReasonFailed)
		sleep(2 * time.Hour)
		w.want("a", Ready, True, ReasonReady)
		if n := len(w.ca.seen()); n != 1 || w.ca.count("found") != 1 {
			t.Errorf("the CA issued %d certificates and was asked %d times what became of it", n, w.ca.count("found"))
		}
		w.stop()
	})
}

func TestAnIssuerThatHeedsNoContextIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Drain = -1 }, certificate("a"))
		release := make(chan struct{})
		w.sched.cfg.Issuers = Static(map[string]Issuer{"ca": issuerFunc(func(context.Context, *Request) (*Issued, error) {
			<-release
			return nil, errors.New("late")
		})})
		w.start()
		w.cancel()
		if err := <-w.ended; err == nil || err.Error() != "renewal: 1 issuances go on 10s after they were cancelled; their Issuer does not heed its context" {
			t.Error(err)
		}
		close(release)
		synctest.Wait()
	})
}

// brittle is a Store whose nth write is its last: what a kill between two
// writes leaves.
type brittle struct {
	Store
	mu     sync.Mutex
	writes int
	last   int
	keeps  int // how many deletes fail
}

func (b *brittle) write() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.writes++; b.last > 0 && b.writes > b.last {
		return errors.New("the power failed")
	}
	return nil
}

func (b *brittle) UpdateStatus(ctx context.Context, c *Certificate) error {
	if err := b.write(); err != nil {
		return err
	}
	return b.Store.UpdateStatus(ctx, c)
}

func (b *brittle) PutSecret(ctx context.Context, s *Secret) error {
	if err := b.write(); err != nil {
		return err
	}
	return b.Store.PutSecret(ctx, s)
}

func (b *brittle) DeleteSecret(ctx context.Context, ns, name string) error {
	if err := b.write(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keeps--; b.keeps >= 0 {
		return errors.New("no route to host")
	}
	return b.Store.DeleteSecret(ctx, ns, name)
}

// TestWhereverThePowerFails: after each write of an issuance, of a renewal that
// fails and of one that does not, the process ends; the next one finishes, the
// CA issues no certificate twice, and what was ready stays.
func TestWhereverThePowerFails(t *testing.T) {
	for name, cause := range map[string]error{
		"a temporary failure": errors.New("connection refused"), "a permanent one": Permanent("refused"), "an answer that is lost": nil,
	} {
		for n, all := 1, false; !all; n++ {
			t.Run(fmt.Sprintf("%s, after write %d", name, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { all = powerFails(t, cause, n) })
			})
		}
	}
}

// powerFails reports whether the power failed after everything was done.
func powerFails(t *testing.T, cause error, n int) bool {
	b := &brittle{last: n}
	w := newWorld(t, nil, certificate("a"))
	b.Store = w.store
	w.sched.cfg.Store = b
	fail := func(*Request) error { return cause }
	if cause == nil {
		fail = func(*Request) error { return errors.New("connection reset by peer") }
	}
	renew := func() {
		w.sched.Renew(context.Background(), Key{"default", "a"})
		sleep(5 * time.Second)
	}
	w.start()
	sleep(5 * time.Second)
	w.ca.lean(func(ca *watchful) {
		if ca.fails = fail; cause == nil {
			ca.fails, ca.lost = nil, fail
		}
	})
	renew()
	w.ca.lean(func(ca *watchful) { ca.fails, ca.lost = nil, nil })
	renew()
	ready := w.get("a").Status.Is(Ready)
	before, _ := w.store.GetSecret(context.Background(), "default", "a-tls")
	all := b.writes <= n
	w.stop() // its last writes fail too

	again, err := New(w.sched.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.last = 0
	w.sched = again
	w.start()
	if c := w.get("a"); ready && !c.Status.Is(Ready) {
		t.Errorf("it was Ready, and is not: %+v", c.Status)
	}
	if now, err := w.store.GetSecret(context.Background(), "default", "a-tls"); ready && (before == nil || err != nil || len(now.Data) != len(before.Data)) {
		t.Errorf("it was Ready with %v; now there is %v (%v)", before, now, err)
	}
	sleep(33 * time.Hour) // the longest backoff
	c := w.want("a", Ready, True, ReasonReady)
	ids := map[string]int{}
	for _, e := range w.ca.seen() {
		if ids[e.id]++; ids[e.id] > 1 {
			t.Errorf("request %s was issued twice", e.id)
		}
	}
	if c.Status.Condition(Issuing) != nil || *c.Status.Revision != len(ids) {
		t.Errorf("the CA issued %d certificates: %+v", len(ids), c.Status)
	}
	if _, err := w.store.GetSecret(context.Background(), "default", "a.next-private-key"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the next key is still there: %v", err)
	}
	w.stop()
	return all
}

// TestARequestGoesWithItsCertificate, whatever became of it.
func TestARequestGoesWithItsCertificate(t *testing.T) {
	for name, lean := range map[string]func(*watchful){
		"while it runs":      func(ca *watchful) { ca.takes = time.Minute },
		"after it failed":    func(ca *watchful) { ca.fails = func(*Request) error { return errors.New("no") } },
		"after it succeeded": func(*watchful) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil, certificate("a"))
				w.ca.lean(lean)
				w.start()
				sleep(5 * time.Second)
				w.store.Delete(Key{"default", "a"})
				sleep(2 * time.Minute)
				if s, err := w.store.GetSecret(t.Context(), "default", "a.next-private-key"); !errors.Is(err, ErrNotFound) {
					t.Errorf("its key is still there: %v, %v", s, err)
				}
				w.stop()
			})
		})
	}
}

// TestARequestThatCouldNotBeDeletedIsLater: the store was away just then.
func TestARequestThatCouldNotBeDeletedIsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		b := &brittle{Store: w.store}
		w.sched.cfg.Store = b
		w.start()
		b.mu.Lock()
		b.keeps = 1
		b.mu.Unlock()
		w.sched.Renew(t.Context(), Key{"default", "a"})
		sleep(time.Minute)
		if _, err := w.store.GetSecret(t.Context(), "default", "a.next-private-key"); w.revision("a") != 2 || !errors.Is(err, ErrNotFound) {
			t.Errorf("revision %d; the key of its request: %v", w.revision("a"), err)
		}
		w.stop()
	})
}

// away is a Store that does not answer for a while, and whose watch breaks.
type away struct {
	Store
	mu     sync.Mutex
	broken bool
	stop   chan struct{}
}

func (a *away) err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errors.New("no route to host")
	}
	return nil
}

func (a *away) Get(ctx context.Context, k Key) (*Certificate, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.Get(ctx, k)
}

func (a *away) List(ctx context.Context) ([]Ref, error) {
	if err := a.err(); err != nil {
		return nil, err
	}
	return a.Store.List(ctx)
}

func (a *away) Watch(ctx context.Context, f func(Key)) error {
	if err := a.err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.mu.Lock()
	stop := a.stop
	a.mu.Unlock()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return a.Store.Watch(ctx, f)
}

func TestAStoreThatIsAwayIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"))
		a := &away{Store: w.store, stop: make(chan struct{})}
		w.sched.cfg.Store = a
		w.start()
		a.mu.Lock()
		a.broken = true
		close(a.stop)
		a.mu.Unlock()
		w.store.Apply(certificate("b"))
		sleep(time.Hour)
		if w.revision("b") != 0 {
			t.Error("issued although the store is away")
		}
		a.mu.Lock()
		a.broken, a.stop = false, make(chan struct{})
		a.mu.Unlock()
		sleep(2 * time.Minute)
		w.want("b", Ready, True, ReasonReady)
		w.stop()
	})
}

// TestTheClockJumps: a day forth and a day back, in the middle of everything.
func TestTheClockJumps(t *testing.T) {
	for _, tt := range []struct {
		name   string
		jump   time.Duration
		within time.Duration // what came due must be renewed within
		most   int           // issuances in the day after
	}{
		{"a day forth: what came due meanwhile is renewed, spread", day, 30 * time.Minute, 3 * 300},
		{"an hour forth", time.Hour, 30 * time.Minute, 3 * 300},
		{"a day back: nothing is renewed for it", -day, 0, 2 * 300},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var skew time.Duration
				now := func() time.Time {
					mu.Lock()
					defer mu.Unlock()
					return time.Now().Round(0).Add(skew)
				}
				const n = 300
				var list []*Certificate
				for _, name := range names(n) {
					list = append(list, certificate(name, lives(2*day)))
				}
				w := newWorld(t, func(c *Config) { c.Now = now }, list...)
				w.ca.Issuer.(*CA).Now = now
				w.start()
				sleep(20 * time.Hour)
				before := len(w.ca.seen())
				mu.Lock()
				skew = tt.jump
				mu.Unlock()
				jumped := time.Now()
				sleep(tt.within)
				if tt.within > 0 {
					for _, name := range names(n) {
						c := w.get(name)
						if !c.Status.Is(Ready) || c.Status.RenewalTime.Before(now()) {
							t.Fatalf("%s %s after the jump: %+v", name, tt.within, c.Status)
						}
					}
				}
				sleep(day)
				perMinute := map[int64]int{}
				for _, e := range w.ca.seen()[before:] {
					perMinute[(e.at.Unix()-jumped.Unix()/60*60)/60]++
				}
				for m, c := range perMinute {
					if c > 61 {
						t.Errorf("%d were issued in minute %d after the jump", c, m)
					}
				}
				if got := len(w.ca.seen()) - before; got > tt.most {
					t.Errorf("%d were issued in the day after", got)
				}
				for _, name := range names(n) {
					w.want(name, Ready, True, ReasonReady)
				}
				w.stop()
			})
		})
	}
}

func TestABackoffIsNotProlongedByAClockThatGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		skew := time.Duration(0)
		now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Round(0).Add(skew) }
		w := newWorld(t, func(c *Config) { c.Now = now }, certificate("a"))
		w.ca.Issuer.(*CA).Now = now
		w.ca.Issuer.(*CA).Certificate.NotBefore = time.Now().Add(-10 * day)
		w.ca.fails = func(*Request) error { return errors.New("no") }
		w.start()
		sleep(time.Minute)
		mu.Lock()
		skew = -day
		mu.Unlock()
		w.ca.lean(func(ca *watchful) { ca.fails = nil })
		sleep(90 * time.Minute)
		w.want("a", Ready, True, ReasonReady)
		w.stop()
	})
}

func TestAReloadChangesWhoseCertificatesAreRenewedWithoutAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		filter, err := Filter{Names: []string{"a*"}}, error(nil)
		w := newWorld(t, func(c *Config) { c.Filters = func() (Filter, error) { return filter, err } }, certificate("a1"), certificate("b1"), certificate("b2"))
		w.ca.lean(func(ca *watchful) { ca.takes = 10 * time.Second })
		w.start()
		sleep(5 * time.Second)
		filter = Filter{Names: []string{"b*"}}
		if err := w.sched.Reload(); err != nil {
			t.Fatal(err)
		}
		sleep(6 * time.Second)
		if w.revision("a1") != 1 {
			t.Error("what was running when the filter changed was not finished")
		}
		sleep(10 * time.Second)
		w.want("b1", Ready, True, ReasonReady)
		w.want("b2", Ready, True, ReasonReady)
		if n := w.ca.count("asked"); n != 3 {
			t.Errorf("the CA was asked %d times", n)
		}
		err = errors.New("half a file")
		if got := w.sched.Reload(); got == nil || got.Error() != "the last good filter stays: half a file" {
			t.Errorf("a bad filter: %v", got)
		}
		w.store.Apply(certificate("a2"))
		w.store.Apply(certificate("b3"))
		sleep(time.Minute)
		w.want("b3", Ready, True, ReasonReady)
		if c := w.get("a2"); len(c.Status.Conditions) != 0 {
			t.Errorf("what the filter does not pass was touched: %+v", c.Status)
		}
		sleep(100 * day)
		if w.revision("a1") != 1 || w.revision("b1") != 2 {
			t.Errorf("after a hundred days a1 has revision %d, b1 %d", w.revision("a1"), w.revision("b1"))
		}
		w.stop()
	})
}

func TestASchedulerRunsOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.start()
		if err := w.sched.Run(t.Context()); err == nil {
			t.Error("a second Run began")
		}
		w.stop()
		w.start()
		w.stop()
	})
}
