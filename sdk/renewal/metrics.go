package renewal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	expires, renews, ready *prometheus.GaugeVec
	issuances              *prometheus.CounterVec
	seconds                *prometheus.HistogramVec
	depth, running, swept  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	of := []string{"namespace", "name", "issuer"}
	return &metrics{
		expires: f.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_expiry_timestamp_seconds",
			Help: "When a certificate ends, Unix time."}, of),
		renews: f.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_renewal_timestamp_seconds",
			Help: "When a certificate is next renewed, Unix time."}, of),
		ready: f.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_ready",
			Help: "1 while a certificate is Ready: valid now, with its key, as its spec asks."}, of),
		issuances: f.NewCounterVec(prometheus.CounterOpts{Name: "legation_certificate_issuances_total",
			Help: "Certificates asked for, by issuer and result (issued, temporary, permanent, cancelled)."}, []string{"issuer", "result"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{Name: "legation_certificate_issue_seconds",
			Help: "Time from asking an issuer to its answer.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 11)}, []string{"issuer"}),
		depth: f.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_queue_depth",
			Help: "Certificates that are due and wait for a place."}),
		running: f.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_running",
			Help: "Certificates being issued."}),
		swept: f.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_sweep_timestamp_seconds",
			Help: "When all certificates were last looked at, Unix time."}),
	}
}

// tell sets what is known of one certificate.
func (m *metrics) tell(k Key, issuer string, status *CertificateStatus) {
	set := func(g *prometheus.GaugeVec, t *Time) {
		if t == nil {
			g.DeleteLabelValues(k.Namespace, k.Name, issuer)
			return
		}
		g.WithLabelValues(k.Namespace, k.Name, issuer).Set(float64(t.Unix()))
	}
	set(m.expires, status.NotAfter)
	set(m.renews, status.RenewalTime)
	ready := 0.0
	if status.Is(Ready) {
		ready = 1
	}
	m.ready.WithLabelValues(k.Namespace, k.Name, issuer).Set(ready)
}

// forget removes the series of a certificate with an issuer.
func (m *metrics) forget(k Key, issuer string) {
	for _, g := range []*prometheus.GaugeVec{m.expires, m.renews, m.ready} {
		g.DeleteLabelValues(k.Namespace, k.Name, issuer)
	}
}

func (m *metrics) asked(issuer, result string, took time.Duration) {
	m.issuances.WithLabelValues(issuer, result).Inc()
	m.seconds.WithLabelValues(issuer).Observe(took.Seconds())
}
