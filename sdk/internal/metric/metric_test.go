package metric

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestShared(t *testing.T) {
	r := prometheus.NewRegistry()
	counter := func(labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x_total", Help: "X."}, labels)
	}
	first, err := Shared(r, counter("a"))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := Shared(r, counter("a")); err != nil || second != first {
		t.Errorf("the second of the same name is another one: %v", err)
	}
	if other, err := Shared(r, counter("b")); err == nil || other == nil || !strings.Contains(err.Error(), "Registerer of its own") {
		t.Errorf("other labels: %v", err)
	}
	if _, err := Shared(r, prometheus.NewGauge(prometheus.GaugeOpts{Name: "x_total", Help: "X."})); err == nil {
		t.Error("another kind of metric is taken")
	}
	if c, err := Shared(nil, counter("a")); err != nil || c == nil {
		t.Errorf("without a registry: %v", err)
	}
}
