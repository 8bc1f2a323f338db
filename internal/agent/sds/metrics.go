package sds

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	streams *prometheus.GaugeVec
	denied  prometheus.Counter
	missing prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
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
