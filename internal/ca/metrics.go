package ca

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	signed      *prometheus.CounterVec
	jwts        *prometheus.CounterVec
	signSeconds prometheus.Histogram
	revocations *prometheus.CounterVec
	crlNumber   prometheus.Gauge
	crlEntries  prometheus.Gauge
	issuingEnds prometheus.Gauge
	rootEnds    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		signed: f.NewCounterVec(prometheus.CounterOpts{Name: "legation_ca_x509_svids_total",
			Help: "X.509-SVIDs asked for, by profile and result (ok, or why not)."}, []string{"profile", "result"}),
		jwts: f.NewCounterVec(prometheus.CounterOpts{Name: "legation_ca_jwt_svids_total",
			Help: "JWT-SVIDs asked for, by result (ok, or why not)."}, []string{"result"}),
		signSeconds: f.NewHistogram(prometheus.HistogramOpts{Name: "legation_ca_sign_seconds",
			Help: "Time from a batch of requests to its certificates, durable and recorded.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		revocations: f.NewCounterVec(prometheus.CounterOpts{Name: "legation_ca_revocations_total",
			Help: "Revocations by what was named (serial, spiffe_id, node, superseded)."}, []string{"by"}),
		crlNumber:  f.NewGauge(prometheus.GaugeOpts{Name: "legation_ca_crl_number", Help: "Number of the CRL this replica serves."}),
		crlEntries: f.NewGauge(prometheus.GaugeOpts{Name: "legation_ca_crl_entries", Help: "Serials in the CRL this replica serves."}),
		issuingEnds: f.NewGauge(prometheus.GaugeOpts{Name: "legation_ca_issuing_not_after_timestamp_seconds",
			Help: "When the issuing CA ends, Unix time."}),
		rootEnds: f.NewGauge(prometheus.GaugeOpts{Name: "legation_ca_root_not_after_timestamp_seconds",
			Help: "When the root ends, Unix time."}),
	}
}
