package sds

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what several Servers of one agent do; they share it.
type Metrics struct {
	streams *prometheus.GaugeVec
	denied  prometheus.Counter
	missing prometheus.Counter
}

// NewMetrics registers with r, which may be nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "legation_sds_streams", Help: "Open xDS streams of proxies, by protocol."}, []string{"protocol"}),
		denied: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_sds_denied_total", Help: "Calls whose caller was not authorised."}),
		missing: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_sds_missing_total", Help: "Names asked for that could not be served, once per name and stream."}),
	}
	if r != nil {
		r.MustRegister(m.streams, m.denied, m.missing)
	}
	return m
}
