package agent

import (
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/prometheus/client_golang/prometheus"
)

// linkCollector tells at each scrape what this node knows from the control
// plane.
type linkCollector struct{ link *upstream.Link }

var (
	entriesDesc = prometheus.NewDesc("legation_agent_entries", "Registration entries of this node.", nil, nil)
	crlDesc     = prometheus.NewDesc("legation_agent_crl_number", "Number of the newest CRL held, by authority.", []string{"authority"}, nil)
	confirmDesc = prometheus.NewDesc("legation_agent_crl_confirmed_timestamp_seconds",
		"When the control plane last said that the CRL held is the newest, by authority, Unix time.", []string{"authority"}, nil)
	identityDesc = prometheus.NewDesc("legation_agent_identity_expiry_timestamp_seconds", "When the node's own certificate ends, Unix time.", nil, nil)
)

func (c linkCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{entriesDesc, crlDesc, confirmDesc, identityDesc} {
		ch <- d
	}
}

func (c linkCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	view, _ := c.link.View()
	gauge(entriesDesc, float64(len(view.Entries)))
	for name, crl := range view.CRLs {
		gauge(crlDesc, float64(crl.Number), name)
	}
	for name, h := range view.Heartbeats {
		gauge(confirmDesc, float64(h.UnixSeconds), name)
	}
	if id, _ := c.link.Identity(); id != nil {
		gauge(identityDesc, float64(id.NotAfter().Unix()))
	}
}
