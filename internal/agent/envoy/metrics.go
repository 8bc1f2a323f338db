package envoy

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what the Envoys of one agent see; all sessions share it. A
// nil Metrics counts nothing.
type Metrics struct {
	handshakes *prometheus.CounterVec
	tls        *prometheus.CounterVec
	ready      *prometheus.HistogramVec
}

// NewMetrics registers with reg, which may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_proxy_handshakes_total",
			Help: "mTLS handshakes of the Envoys here, by direction, result (ok, refused, refused_by_peer, failed, aborted) and cause.",
		}, []string{"direction", "result", "cause"}),
		tls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legation_proxy_tls_total",
			Help: "mTLS connections by direction, protocol version, cipher and key exchange group.",
		}, []string{"direction", "version", "cipher", "group"}),
		ready: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "legation_proxy_connect_seconds",
			Help:    "From accepting a connection to handshake done and onward connection open.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, 1, 5},
		}, []string{"direction"}),
	}
	if reg != nil {
		reg.MustRegister(m.handshakes, m.tls, m.ready)
	}
	return m
}

func (m *Metrics) handshake(d Direction, result string, cause Cause) {
	if m != nil {
		m.handshakes.WithLabelValues(string(d), result, string(cause)).Inc()
	}
}

func (m *Metrics) connected(c *Connection) {
	if m == nil || c.TLSVersion == "" {
		return // the program's side without TLS is no handshake
	}
	m.handshake(c.Direction, "ok", CauseNone)
	m.tls.WithLabelValues(string(c.Direction), c.TLSVersion, c.Cipher, c.Group).Inc()
	m.ready.WithLabelValues(string(c.Direction)).Observe(c.Ready.Seconds())
}
