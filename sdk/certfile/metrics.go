package certfile

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/legation-io/legation/sdk/internal/metric"
)

type metrics struct {
	changed, refused prometheus.Counter
	expiry, watching prometheus.Gauge
}

// newMetrics registers the metrics, or joins those that another Source has
// registered: the label file tells them apart.
func newMetrics(r prometheus.Registerer, file string) (metrics, error) {
	loads, err := metric.Shared(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "legation_certfile_loads_total",
		Help: "Certificate files that were read and replaced the old ones (changed) or were not good (refused).",
	}, []string{"file", "result"}))
	if err != nil {
		return metrics{}, err
	}
	expiry, err := metric.Shared(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "legation_certfile_expiry_timestamp_seconds",
		Help: "End of the certificate that is served, in Unix time.",
	}, []string{"file"}))
	if err != nil {
		return metrics{}, err
	}
	watching, err := metric.Shared(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "legation_certfile_watching",
		Help: "1 when changes of the files are noticed at once, 0 when by polling.",
	}, []string{"file"}))
	if err != nil {
		return metrics{}, err
	}
	return metrics{loads.WithLabelValues(file, "changed"), loads.WithLabelValues(file, "refused"), expiry.WithLabelValues(file), watching.WithLabelValues(file)}, nil
}
