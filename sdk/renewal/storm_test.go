package renewal

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestThousandsAtOnce: none is there; then the program was down until all
// were overdue: ten thousand in make test-long, else two. Never more than five run at once, a small issuer does not wait
// for a large one, and what is only overdue is spread.
func TestThousandsAtOnce(t *testing.T) {
	n, left := 2_000, 1_000 // of those left overdue, a part is enough to see
	if os.Getenv("LEGATION_LONG") != "" {
		n, left = 10_000, 3_000
	}
	synctest.Test(t, func(t *testing.T) {
		const few = 10
		var list []*Certificate
		for _, name := range names(n) {
			list = append(list, certificate(name))
		}
		for _, name := range names(few) {
			list = append(list, certificate("z"+name, func(s *CertificateSpec) { s.IssuerRef.Name = "small" }))
		}
		w := newWorld(t, func(c *Config) { c.Sweep = time.Hour }, list...)
		w.ca.lean(func(ca *watchful) { ca.takes = 100 * time.Millisecond })
		small := &watchful{Issuer: newCA(t, 10_000*day), takes: 100 * time.Millisecond}
		w.sched.cfg.Issuers = Static(map[string]Issuer{"ca": w.ca, "small": small})
		began := time.Now()
		w.start()
		sleep(time.Hour)
		w.stop()
		if got := len(w.ca.seen()); got != n || w.ca.count("most") > 5 {
			t.Fatalf("%d of %d were issued, %d at once", got, n, w.ca.count("most"))
		}
		last := small.seen()[few-1].at.Sub(began)
		t.Logf("the small issuer's %d were there after %s, the large one's %d after %s", few, last, n, w.ca.seen()[n-1].at.Sub(began))
		if last > 10*time.Second {
			t.Errorf("the small issuer's last was issued after %s", last)
		}

		for _, name := range names(n)[left:] {
			w.store.Delete(Key{"default", name})
		}
		sleep(61 * day) // all are overdue, and have 29 days
		again, err := New(w.sched.cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.sched = again
		w.start()
		sleep(6 * time.Hour)
		w.stop()
		minutes, most := map[int64]int{}, 0
		for _, e := range w.ca.seen()[n:] {
			m := e.at.Unix() / 60
			minutes[m]++
			most = max(most, minutes[m])
		}
		mean := float64(left) / float64(len(minutes))
		t.Logf("%d overdue renewals: %d in the busiest of %d minutes, mean %.1f", len(w.ca.seen())-n, most, len(minutes), mean)
		if len(w.ca.seen()) != n+left || float64(most) > 2*mean {
			t.Errorf("%d renewals, %d in one minute", len(w.ca.seen())-n, most)
		}
	})
}

// TestAnIssuerThatHangsDoesNotHoldTheOthersUp: one place is left for them.
func TestAnIssuerThatHangsDoesNotHoldTheOthersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := []*Certificate{certificate("good", func(s *CertificateSpec) { s.IssuerRef.Name = "good" })}
		for _, name := range names(50) {
			list = append(list, certificate(name))
		}
		w := newWorld(t, func(c *Config) { c.Drain = -1 }, list...)
		good := &watchful{Issuer: newCA(t, 10_000*day)}
		w.ca.lean(func(ca *watchful) { ca.takes = 1000 * time.Hour })
		w.sched.cfg.Issuers = Static(map[string]Issuer{"ca": w.ca, "good": good})
		w.start()
		sleep(time.Second)
		w.want("good", Ready, True, ReasonReady)
		for range 20 {
			if err := w.sched.Renew(context.Background(), Key{"default", "good"}); err != nil {
				t.Fatal(err)
			}
			sleep(5 * time.Minute)
		}
		if good.count("asked") != 21 || w.ca.count("most") > 4 {
			t.Errorf("the good issuer was asked %d times; %d of the other ran at once", good.count("asked"), w.ca.count("most"))
		}
		w.stop()
	})
}

func TestTheMostUrgentIsNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var list []*Certificate
		for i, name := range names(20) {
			list = append(list, certificate(name, lives(time.Duration(100-i)*day)))
		}
		w := newWorld(t, func(c *Config) { c.MaxConcurrent, c.Jitter = 1, -1 }, list...)
		w.start()
		w.stop()
		sleep(70 * day) // all are overdue
		w.ca.lean(func(ca *watchful) { ca.takes = time.Minute })
		n := len(w.ca.seen())
		if err := w.sched.RunOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		for i, e := range w.ca.seen()[n:] {
			if want := names(20)[19-i]; e.key.Name != want {
				t.Errorf("%s was renewed at place %d; want %s", e.key.Name, i, want)
			}
		}
	})
}
