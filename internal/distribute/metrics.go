package distribute

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	changes     prometheus.Counter
	subscribers prometheus.Gauge
	responses   *prometheus.CounterVec
	resources   *prometheus.CounterVec
	refused     *prometheus.CounterVec
	push        *prometheus.HistogramVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_distribute_changes_total", Help: "Resources set or removed whose version differed."}),
		subscribers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "legation_distribute_subscribers", Help: "Subscribers attached."}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_distribute_responses_total", Help: "Responses handed out, by type."}, []string{"type"}),
		resources: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_distribute_resources_sent_total", Help: "Resources in responses handed out, by type."}, []string{"type"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_distribute_refused_total", Help: "Responses that a subscriber refused, by type."}, []string{"type"}),
		push: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "legation_push_seconds",
			Help:    "From a change to its acknowledgement by a subscriber that was attached and idle when it happened, by type.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"type"}),
	}
	if r != nil {
		r.MustRegister(m.changes, m.subscribers, m.responses, m.resources, m.refused, m.push)
	}
	return m
}

func (m *metrics) sent(w *watch, resources int) {
	l := w.label()
	m.responses.WithLabelValues(l).Inc()
	m.resources.WithLabelValues(l).Add(float64(resources))
}

// label is the type, or "unknown" for a type of which the subscriber sees no
// resource: type URLs come from outside and must not make time series.
func (w *watch) label() string {
	for _, tb := range w.tables {
		if len(tb.resources) > 0 {
			return w.typ
		}
	}
	return "unknown"
}
