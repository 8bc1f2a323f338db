package renewal

import (
	"context"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestAYearOfManyCertificates: no gap in anybody's validity, and never more
// than five at once; of a thousand in make test-long, else of 200.
func TestAYearOfManyCertificates(t *testing.T) {
	n := 200
	if os.Getenv("LEGATION_LONG") != "" {
		n = 1000
	}
	synctest.Test(t, func(t *testing.T) {
		const life = 60 * 24 * time.Hour
		var list []*Certificate
		for _, name := range names(n) {
			list = append(list, certificate(name, lives(life)))
		}
		w := newWorld(t, func(c *Config) { c.Sweep = 12 * time.Hour }, list...)
		w.ca.lean(func(ca *watchful) { ca.takes = 100 * time.Millisecond })
		w.start()
		sleep(365 * 24 * time.Hour)
		w.stop()

		if w.ca.count("most") > 5 {
			t.Errorf("%d issuances ran at once", w.ca.count("most"))
		}
		last := map[Key]time.Time{}
		for _, e := range w.ca.seen() {
			if at, ok := last[e.key]; ok && !e.at.Before(at.Add(life)) {
				t.Errorf("%s ended at %s and was renewed at %s", e.key, at.Add(life), e.at)
			}
			last[e.key] = e.at
		}
		if len(last) != n {
			t.Fatalf("%d of %d certificates were issued", len(last), n)
		}
		for k, at := range last {
			if time.Now().After(at.Add(life)) {
				t.Errorf("%s ended at %s and was not renewed", k, at.Add(life))
			}
		}
		t.Logf("%d issuances of %d certificates", len(w.ca.seen()), n)
	})
}

// TestAMassStartIsSpread: what was issued within minutes is renewed evenly.
func TestAMassStartIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, life = 1000, 4 * time.Hour
		var list []*Certificate
		for _, name := range names(n) {
			list = append(list, certificate(name, lives(life)))
		}
		w := newWorld(t, nil, list...)
		w.ca.lean(func(ca *watchful) { ca.takes = 20 * time.Millisecond })
		began := time.Now()
		w.start()
		sleep(life)
		w.stop()
		got := ratio(w.ca.seen(), began.Add(life/3), began.Add(life), false)
		t.Logf("most per minute ÷ mean per minute in the first renewals: %.2f", got)
		if got > 2 {
			t.Errorf("most per minute ÷ mean per minute: %.2f; want 2 at most", got)
		}
	})
}

// TestRenewalsSpreadOverAllTheTime: each generation of a mass start is spread
// wider, until there is no wave left. Only the planner runs here.
func TestRenewalsSpreadOverAllTheTime(t *testing.T) {
	for _, tt := range []struct {
		n        int
		interval time.Duration // from issuance to the latest renewal
		within   int           // generations
	}{
		{1_000, 160 * time.Minute, 40},
		{5_000, 16 * time.Hour, 30},
	} {
		t.Run(fmt.Sprintf("%d every %s", tt.n, tt.interval), func(t *testing.T) {
			p := newPlanner()
			begin := time.Unix(0, 0)
			due := &alarms{}
			for _, name := range names(tt.n) {
				it := &item{key: Key{"default", name}, alarm: -1}
				due.set(it, begin)
			}
			var events []event
			end := begin.Add(time.Duration(tt.within) * tt.interval)
			for (*due)[0].at.Before(end) {
				it := (*due)[0]
				at := it.at
				events = append(events, event{at: at})
				latest := at.Add(tt.interval)
				due.set(it, p.pick(it.key, latest.Add(-tt.interval/10), latest))
			}
			half := begin.Add(end.Sub(begin) / 2)
			got := ratio(events, half, end, true)
			t.Logf("most per minute ÷ mean per minute in generations %d to %d: %.2f", tt.within/2, tt.within, got)
			if got > 2 {
				t.Errorf("%.2f; want 2 at most", got)
			}
		})
	}
}

// ratio is the most issuances in a minute over the mean; idle minutes count
// only if all do.
func ratio(events []event, from, to time.Time, all bool) float64 {
	minutes := map[int64]int{}
	sum, most := 0, 0
	for _, e := range events {
		if e.at.After(from) && e.at.Before(to) {
			m := e.at.Unix() / 60
			minutes[m]++
			sum++
			most = max(most, minutes[m])
		}
	}
	count := float64(len(minutes))
	if all {
		count = to.Sub(from).Minutes()
	}
	return float64(most) / (float64(sum) / count)
}

func TestOnceIsEnoughForAProgramThatRunsFromATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil, certificate("a"), certificate("b"))
		if err := w.sched.RunOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.want("a", Ready, True, ReasonReady)
		w.want("b", Ready, True, ReasonReady)
		if err := w.sched.RunOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		if w.ca.count("asked") != 2 {
			t.Errorf("the CA was asked %d times", w.ca.count("asked"))
		}
		time.Sleep(61 * 24 * time.Hour)
		if err := w.sched.RunOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		if w.revision("a") != 2 || w.revision("b") != 2 {
			t.Errorf("revisions %d and %d; want 2: nothing is put off", w.revision("a"), w.revision("b"))
		}
	})
}
