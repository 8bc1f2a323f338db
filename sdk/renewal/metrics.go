package renewal

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	expires, renews, ready *prometheus.GaugeVec
	issuances              *prometheus.CounterVec
	seconds                *prometheus.HistogramVec
	depth, running, swept  prometheus.Gauge
}

// newMetrics registers the metrics; one Scheduler per registry.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	of := []string{"namespace", "name", "issuer"}
	m := &metrics{
		expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_expiry_timestamp_seconds",
			Help: "When a certificate ends, Unix time."}, of),
		renews: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_renewal_timestamp_seconds",
			Help: "When a certificate is next renewed, Unix time."}, of),
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_certificate_ready",
			Help: "1 while a certificate is Ready: valid now, with its key, as its spec asks."}, of),
		issuances: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_certificate_issuances_total",
			Help: "Certificates asked for, by issuer and result (issued, temporary, permanent, cancelled)."}, []string{"issuer", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "legation_certificate_issue_seconds",
			Help: "Time from asking an issuer to its answer.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 11)}, []string{"issuer"}),
		depth: prometheus.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_queue_depth",
			Help: "Certificates that are due and wait for a place."}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_running",
			Help: "Certificates being issued."}),
		swept: prometheus.NewGauge(prometheus.GaugeOpts{Name: "legation_renewal_sweep_timestamp_seconds",
			Help: "When all certificates were last looked at, Unix time."}),
	}
	if r == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.expires, m.renews, m.ready, m.issuances, m.seconds, m.depth, m.running, m.swept} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("renewal: Registerer (wrap it with a label per Scheduler where there are several): %w", err)
	}
	return m, nil
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
