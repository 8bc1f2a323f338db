package certfile

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	changed, refused prometheus.Counter
	expiry, watching prometheus.Gauge
}

// newMetrics registers the metrics, or joins those that another Source has
// registered: the label file tells them apart.
func newMetrics(r prometheus.Registerer, file string) (metrics, error) {
	loads, err := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "legation_certfile_loads_total",
		Help: "Certificate files that were read and replaced the old ones (changed) or were not good (refused).",
	}, []string{"file", "result"}))
	if err != nil {
		return metrics{}, err
	}
	expiry, err := register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "legation_certfile_expiry_timestamp_seconds",
		Help: "End of the certificate that is served, in Unix time.",
	}, []string{"file"}))
	if err != nil {
		return metrics{}, err
	}
	watching, err := register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "legation_certfile_watching",
		Help: "1 when changes of the files are noticed at once, 0 when by polling.",
	}, []string{"file"}))
	if err != nil {
		return metrics{}, err
	}
	return metrics{loads.WithLabelValues(file, "changed"), loads.WithLabelValues(file, "refused"), expiry.WithLabelValues(file), watching.WithLabelValues(file)}, nil
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	if r == nil {
		return c, nil
	}
	err := r.Register(c)
	if before, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if same, ok := before.ExistingCollector.(C); ok {
			return same, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register the metrics of certificate files: %w", err)
	}
	return c, nil
}
