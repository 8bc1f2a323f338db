package renewal

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestAYearOfAThousandCertificates: no gap in anybody's validity, and never
// more than five at once.
func TestAYearOfAThousandCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, life = 1000, 30 * 24 * time.Hour
		var list []*Certificate
		for _, name := range names(n) {
			list = append(list, certificate(name, lives(life)))
		}
		w := newWorld(t, func(c *Config) { c.Sweep = 12 * time.Hour }, list...)
		w.ca.takes = 100 * time.Millisecond
		w.start()
		sleep(365 * 24 * time.Hour)
		w.stop()

		if w.ca.most > 5 {
			t.Errorf("%d issuances ran at once", w.ca.most)
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

// TestAMassStartIsSpread: what was issued within minutes is renewed evenly,
// from the first renewals on, and after some of them over all the time.
func TestAMassStartIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, life = 600, 4 * time.Hour
		var list []*Certificate
		for _, name := range names(n) {
			list = append(list, certificate(name, lives(life)))
		}
		w := newWorld(t, nil, list...)
		w.ca.takes = 20 * time.Millisecond
		began := time.Now()
		w.start()
		sleep(life)
		first := ratio(w.ca.seen(), began.Add(life/3), began.Add(life), false)
		sleep(92 * time.Hour)
		w.stop()
		later := ratio(w.ca.seen(), began.Add(72*time.Hour), began.Add(96*time.Hour), true)
		t.Logf("most per minute ÷ mean per minute: %.2f in the first renewals, %.2f over the fourth day", first, later)
		if first > 2 || later > 2 {
			t.Errorf("most per minute ÷ mean per minute: %.2f and %.2f; want 2 at most", first, later)
		}
	})
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
		if w.ca.asked != 2 {
			t.Errorf("the CA was asked %d times", w.ca.asked)
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
