package propagation

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/legation-io/legation/sdk/internal/metric"
)

// metrics are shared by everything that is given one Registerer.
type metrics struct {
	requests, tokens *prometheus.CounterVec
	// chain and cached are those of every good request.
	chain, cached prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	requests, err := counter(r, "legation_propagation_requests_total", "Requests by how their caller is known (chain, connection, edge), or why they were refused.")
	if err != nil {
		return nil, err
	}
	tokens, err := counter(r, "legation_propagation_tokens_total", "Tokens for outgoing calls: cached, signed, stale (signing failed, the old one still holds), unlinked (the chain had to begin anew), failed.")
	if err != nil {
		return nil, err
	}
	return &metrics{requests, tokens, requests.WithLabelValues("chain"), tokens.WithLabelValues("cached")}, nil
}

func counter(r prometheus.Registerer, name, help string) (*prometheus.CounterVec, error) {
	return metric.Shared(r, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"}))
}

func (m *metrics) request(result string) { m.requests.WithLabelValues(result).Inc() }
func (m *metrics) token(result string)   { m.tokens.WithLabelValues(result).Inc() }
