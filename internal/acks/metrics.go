package acks

import (
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/prometheus/client_golang/prometheus"
)

// collector counts subscribers at each scrape.
type collector struct{ ledger *Ledger }

var (
	subscribersDesc = prometheus.NewDesc("legation_subscribers", "Local subscribers behind the agents by class; those of a node that is away are of class unknown.", []string{"class"}, nil)
	behindDesc      = prometheus.NewDesc("legation_subscribers_behind", "Of those, the ones that have not acknowledged, or have refused, something they were sent.", []string{"class"}, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- subscribersDesc
	ch <- behindDesc
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	type count struct{ all, behind int }
	counts := map[nodev1.Class]count{}
	for class := range nodev1.Class_name {
		counts[nodev1.Class(class)] = count{}
	}
	a := c.ledger
	a.mu.Lock()
	for _, n := range a.nodes {
		for _, s := range n.subscribers {
			class := s.class
			if s.away {
				class = nodev1.Class_CLASS_UNKNOWN
			}
			k := counts[class]
			k.all++
			for _, st := range s.states {
				if st.GetError() != "" || st.GetSentVersion() != st.GetAckedVersion() {
					k.behind++
					break
				}
			}
			counts[class] = k
		}
	}
	a.mu.Unlock()
	for class, k := range counts {
		label := strings.ToLower(strings.TrimPrefix(class.String(), "CLASS_"))
		ch <- prometheus.MustNewConstMetric(subscribersDesc, prometheus.GaugeValue, float64(k.all), label)
		ch <- prometheus.MustNewConstMetric(behindDesc, prometheus.GaugeValue, float64(k.behind), label)
	}
}
