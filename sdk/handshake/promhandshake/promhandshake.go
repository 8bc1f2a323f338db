// Package promhandshake counts TLS handshakes for Prometheus. It is a hook of
// sdk/handshake in a package of its own, so that who does not want Prometheus
// does not link it.
//
// It exposes
//
//	legation_tls_handshake_errors_total{error_type="tls_handshake_failed",cause,side,refused_by}
//	legation_tls_handshake_seconds{side,result}
//
// Every label has a fixed set of values (handshake.Causes; server, client; own,
// peer; ok, failed): no peer can make another. cause says why (see
// docs/handshake-failures.md), refused_by which side ended it. The histogram
// counts seconds from the first byte to the end, of failures too.
package promhandshake

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/internal/metric"
)

// Hook returns a hook that counts into r; nil counts where nobody looks. Calling
// it again with the same registerer counts into the same metrics. It fails when
// r has other metrics by these names.
func Hook(r prometheus.Registerer) (handshake.Hook, error) {
	failed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "legation_tls_handshake_errors_total",
		Help: "TLS handshakes that failed, by cause.",
	}, []string{"error_type", "cause", "side", "refused_by"})
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "legation_tls_handshake_seconds",
		Help:    "Duration of TLS handshakes.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"side", "result"})
	var err error
	if failed, err = metric.Shared(r, failed); err != nil {
		return nil, err
	}
	if took, err = metric.Shared(r, took); err != nil {
		return nil, err
	}
	ok := map[handshake.Side]prometheus.Observer{}
	for _, side := range []handshake.Side{handshake.Server, handshake.Client} {
		ok[side] = took.WithLabelValues(string(side), "ok") // so that a success looks nothing up
	}
	causes := map[handshake.Cause]bool{}
	for _, c := range handshake.Causes() {
		causes[c] = true
	}
	return func(_ context.Context, event *handshake.Event) {
		if event.Err == nil {
			if o := ok[event.Side]; o != nil {
				o.Observe(event.Duration.Seconds())
			}
			return
		}
		cause := event.Err.Cause
		if !causes[cause] { // an Error that is not of this SDK
			cause = handshake.Other
		}
		failed.WithLabelValues(handshake.ErrorType, string(cause), string(event.Side), event.Err.RefusedBy()).Inc()
		if !event.Late { // it was counted when it seemed to succeed
			took.WithLabelValues(string(event.Side), "failed").Observe(event.Duration.Seconds())
		}
	}, nil
}
