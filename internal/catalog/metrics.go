package catalog

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	identities, services, quarantined prometheus.Gauge
	revision                          prometheus.Gauge
	snapshotSeconds                   prometheus.Histogram
	writes                            *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		identities:  gauge("legation_catalog_identities", "Declared workload identities."),
		services:    gauge("legation_catalog_services", "Declared services."),
		quarantined: gauge("legation_catalog_quarantined", "Stored resources that cannot be read."),
		revision:    gauge("legation_catalog_revision", "Revision of the store that the catalog reflects."),
		snapshotSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "legation_catalog_snapshot_seconds",
			Help: "Time to make a snapshot out of changes.", Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10)}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_catalog_writes_total",
			Help: "Applies and deletes by result: stored, dry_run, refused, failed."}, []string{"verb", "result"}),
	}
	if r != nil {
		r.MustRegister(m.identities, m.services, m.quarantined, m.revision, m.snapshotSeconds, m.writes)
	}
	return m
}

func (m *metrics) published(s *Snapshot) {
	m.identities.Set(float64(s.identities.len()))
	m.services.Set(float64(s.services.len()))
	m.quarantined.Set(float64(s.quarantined.len()))
	m.revision.Set(float64(s.Revision))
}
