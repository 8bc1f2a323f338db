package propagation

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are shared by everything that is given one Registerer.
type metrics struct {
	requests, tokens *prometheus.CounterVec
	// chain and cached are those of every good request.
	chain, cached prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: counter(r, "legation_propagation_requests_total", "Requests by how their caller is known (chain, connection, edge), or why they were refused."),
		tokens:   counter(r, "legation_propagation_tokens_total", "Tokens for outgoing calls: cached, signed, stale (signing failed, the old one still holds), unlinked (the chain had to begin anew), failed."),
	}
	m.chain, m.cached = m.requests.WithLabelValues("chain"), m.tokens.WithLabelValues("cached")
	return m
}

func counter(r prometheus.Registerer, name, help string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"})
	if r == nil {
		return c
	}
	var already prometheus.AlreadyRegisteredError
	if err := r.Register(c); errors.As(err, &already) {
		if same, ok := already.ExistingCollector.(*prometheus.CounterVec); ok {
			return same
		}
	}
	return c
}

func (m *metrics) request(result string) { m.requests.WithLabelValues(result).Inc() }
func (m *metrics) token(result string)   { m.tokens.WithLabelValues(result).Inc() }
