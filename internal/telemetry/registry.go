package telemetry

import (
	"github.com/legation-io/legation/internal/version"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry holds a program's metrics: Go runtime, process, and the build.
func NewRegistry(program string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "legation_build_info", Help: "The version of this program.",
		ConstLabels: prometheus.Labels{"program": program, "version": version.Version},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
