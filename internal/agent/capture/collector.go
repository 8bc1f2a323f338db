package capture

import "github.com/prometheus/client_golang/prometheus"

var packets = prometheus.NewDesc("legation_capture_packets_total",
	"Packets that met a rule of the capture: for captured connections the first of each, for what is refused every one.",
	[]string{"rule"}, nil)

// Collector shows the counters of the rules as metrics. While they cannot be
// read the scrape says so.
func (r *Rules) Collector() prometheus.Collector { return collector{r} }

type collector struct{ rules *Rules }

func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- packets }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	counters, err := c.rules.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(packets, err)
		return
	}
	for name, v := range counters {
		ch <- prometheus.MustNewConstMetric(packets, prometheus.CounterValue, float64(v.Packets), name)
	}
}
