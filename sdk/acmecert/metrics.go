package acmecert

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	orders   *prometheus.CounterVec
	took     prometheus.Histogram
	requests *prometheus.CounterVec
	notAfter *prometheus.GaugeVec
	staples  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_acme_orders_total", Help: "Orders by how they ended."}, []string{"result"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "legation_acme_order_seconds", Help: "How long orders took.",
			Buckets: []float64{.1, .5, 1, 2, 5, 10, 30, 60, 120, 300}}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_acme_requests_total", Help: "Requests to the CA by how they ended."}, []string{"result"}),
		notAfter: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "legation_acme_certificate_expiry_timestamp_seconds", Help: "When the certificate that is shown ends, Unix time."}, []string{"domain"}),
		staples:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_acme_staples_total", Help: "Fetches of OCSP responses by how they ended."}, []string{"result"}),
	}
	if r == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.orders, m.took, m.requests, m.notAfter, m.staples} {
		problems = append(problems, r.Register(c))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("acmecert: Registerer (wrap it with a label per Manager where there are several): %w", err)
	}
	return m, nil
}
