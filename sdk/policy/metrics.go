package policy

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/legation-io/legation/sdk/internal/metric"
)

type engineMetrics struct {
	byCause   map[Cause]prometheus.Counter
	seconds   prometheus.Histogram
	loads     *prometheus.CounterVec
	loaded    *prometheus.GaugeVec
	throttled prometheus.Counter
}

func newEngineMetrics(r prometheus.Registerer, log *slog.Logger) *engineMetrics {
	decisions := shared(r, log, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_policy_decisions_total",
		Help: "Decisions by outcome and cause."}, []string{"decision", "cause"}))
	m := &engineMetrics{
		byCause: map[Cause]prometheus.Counter{},
		seconds: shared(r, log, prometheus.NewHistogram(prometheus.HistogramOpts{Name: "legation_policy_decision_seconds",
			Help:    "How long policies took to decide.",
			Buckets: []float64{5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 0.1}})),
		loads: shared(r, log, prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_policy_loads_total",
			Help: "Policies loaded, refused or found unchanged, by source."}, []string{"source", "result"})),
		loaded: shared(r, log, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_policy_loaded",
			Help: "1 while a policy is in force, 0 while it was refused and has no predecessor."}, []string{"policy"})),
		throttled: shared(r, log, prometheus.NewCounter(prometheus.CounterOpts{Name: "legation_policy_throttled_total",
			Help: "Evaluations that were given less time, or none, because slow ones had used up their share."})),
	}
	for _, c := range causes {
		decision := "denied"
		if c == CauseAllowed {
			decision = "allowed"
		}
		m.byCause[c] = decisions.WithLabelValues(decision, string(c))
	}
	return m
}

// shared is the collector of another engine in the same registry, if there is
// one.
func shared[C prometheus.Collector](r prometheus.Registerer, log *slog.Logger, c C) C {
	c, err := metric.Shared(r, c)
	if err != nil {
		log.Error("a metric of policies is not exported", "error", err)
	}
	return c
}

func (m *engineMetrics) decided(d Decision) {
	m.byCause[d.Cause].Inc()
	if d.Duration > 0 {
		m.seconds.Observe(d.Duration.Seconds())
	}
}

func (m *engineMetrics) inForce(old, now *state) {
	for _, p := range old.programs {
		m.loaded.DeleteLabelValues(p.name)
	}
	for _, name := range old.broken {
		m.loaded.DeleteLabelValues(name)
	}
	for _, p := range now.programs {
		m.loaded.WithLabelValues(p.name).Set(1)
	}
	for _, name := range now.broken {
		m.loaded.WithLabelValues(name).Set(0)
	}
}
