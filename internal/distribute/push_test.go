package distribute

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

type handClock struct{ now time.Time }

func (c *handClock) Now() time.Time { return c.now }

func TestAPushIsTimedFromTheChangeToTheAcknowledgement(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := &handClock{now: time.Unix(1_800_000_000, 0)}
	e := New(Params{Clock: c, Registerer: reg})
	pushes := func() (count uint64, sum float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "legation_push_seconds" {
				for _, m := range f.Metric {
					count += m.Histogram.GetSampleCount()
					sum += m.Histogram.GetSampleSum()
				}
				if f.GetType() != dto.MetricType_HISTOGRAM {
					t.Errorf("it is a %s", f.GetType())
				}
			}
		}
		return count, sum
	}
	set := func(version string) {
		e.Apply(Change{Scope: "s", Resource: &Resource{Type: "t", Name: "n", Version: version, Body: []byte(version)}})
	}
	set("1")
	s := e.Attach(SubscriberParams{ID: "x", Scopes: []Scope{"s"}})
	defer s.Close()
	answer := func(r *Response, refusal string) {
		if err := s.Request(Request{Type: "t", Nonce: r.Nonce, Error: refusal}); err != nil {
			t.Fatal(err)
		}
	}
	next := func() *Response {
		r, err := s.Poll()
		if err != nil || r == nil {
			t.Fatal(r, err)
		}
		return r
	}
	if err := s.Request(Request{Type: "t", Subscribe: []string{"n"}}); err != nil {
		t.Fatal(err)
	}
	r := next()
	c.now = c.now.Add(time.Hour)
	answer(r, "")
	if n, _ := pushes(); n != 0 {
		t.Error("what was so before the subscriber came was counted as pushed")
	}
	set("2")
	c.now = c.now.Add(time.Second)
	set("3") // coalesced: the older change counts
	c.now = c.now.Add(time.Second)
	r = next()
	c.now = c.now.Add(time.Second)
	answer(r, "")
	if n, sum := pushes(); n != 1 || sum != 3 {
		t.Errorf("%d pushes in %v s, want one in 3 s", n, sum)
	}
	set("4")
	answer(next(), "no")
	if n, _ := pushes(); n != 1 {
		t.Error("a refusal was counted as pushed")
	}
}
