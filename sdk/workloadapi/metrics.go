package workloadapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/legation-io/legation/sdk/internal/holder"
)

// collector reads a source's Status when it is scraped.
type collector struct{ s *Source }

var (
	descState     = prometheus.NewDesc("legation_workloadapi_state", "1 for the state in which the subscription to the Workload API is.", []string{"state"}, nil)
	descAnswers   = prometheus.NewDesc("legation_workloadapi_answers_total", "Good answers of the Workload API.", nil, nil)
	descMalformed = prometheus.NewDesc("legation_workloadapi_malformed_total", "Answers, or parts of them, that made no sense and were dropped.", nil, nil)
	descEnd       = prometheus.NewDesc("legation_workloadapi_certificate_expiry_timestamp_seconds", "When the certificate that is presented ends, Unix time; absent without one.", nil, nil)
	descAnswered  = prometheus.NewDesc("legation_workloadapi_answered_timestamp_seconds", "When the last good answer came, Unix time; absent before the first.", nil, nil)
	descDenials   = prometheus.NewDesc("legation_workloadapi_denials", "Identities and certificates in the deny set; -1 where the socket offers none.", nil, nil)
	descClock     = prometheus.NewDesc("legation_workloadapi_clock_wrong", "1 while this machine's clock disagrees with the certificate it was given.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descState, descAnswers, descMalformed, descEnd, descAnswered, descDenials, descClock} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	st := c.s.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range holder.States {
		gauge(descState, one(s == st.State), string(s))
	}
	out <- prometheus.MustNewConstMetric(descAnswers, prometheus.CounterValue, float64(st.Answers))
	out <- prometheus.MustNewConstMetric(descMalformed, prometheus.CounterValue, float64(st.Malformed))
	if !st.NotAfter.IsZero() {
		gauge(descEnd, float64(st.NotAfter.Unix()))
	}
	if !st.Answered.IsZero() {
		gauge(descAnswered, float64(st.Answered.UnixMilli())/1e3)
	}
	gauge(descDenials, float64(st.Denials))
	gauge(descClock, one(st.Clock != ""))
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
