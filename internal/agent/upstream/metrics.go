package upstream

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connected prometheus.Gauge
	connects  prometheus.Counter
	refused   *prometheus.CounterVec
	applied   *prometheus.CounterVec
	dropped   prometheus.Counter
	renewed   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "legation_agent_upstream_connected", Help: "1 while linked to a replica of the control plane."}),
		connects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_agent_upstream_connects_total", Help: "Links established, the first one included."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_agent_upstream_refused_total", Help: "Resources from the control plane refused, by type; the last good one stays."}, []string{"type"}),
		applied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_agent_upstream_applied_total", Help: "Resources from the control plane applied, by type."}, []string{"type"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "legation_agent_reports_dropped_total", Help: "Reports dropped because the queue was full."}),
		renewed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_agent_identity_renewals_total", Help: "Renewals of the node's own certificate, by outcome."}, []string{"outcome"}),
	}
	if r != nil {
		r.MustRegister(m.connected, m.connects, m.refused, m.applied, m.dropped, m.renewed)
	}
	return m
}
