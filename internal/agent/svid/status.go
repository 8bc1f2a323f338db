package svid

import (
	"cmp"
	"slices"
	"strings"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/prometheus/client_golang/prometheus"
)

// Identities lists what is held now, for status; sorted by entry and instance.
func (m *Manager) Identities() []*localv1.IdentityStatus {
	wall := m.p.Clock.Now()
	m.mu.Lock()
	var all []*localv1.IdentityStatus
	for _, s := range m.slots {
		if !s.usable(wall) {
			continue
		}
		all = append(all, &localv1.IdentityStatus{
			SpiffeId: s.svid.ID.String(), Entry: s.key.entry, Instance: string(s.key.instance),
			Serial: s.svid.Serial, NotAfterUnix: s.svid.NotAfter.Unix(), RenewAtUnix: s.svid.RenewAt.Unix(),
		})
	}
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b *localv1.IdentityStatus) int {
		if d := strings.Compare(a.Entry, b.Entry); d != 0 {
			return d
		}
		return strings.Compare(a.Instance, b.Instance)
	})
	return all
}

// Asked reports whether anybody asked for an entry's certificate, and why the
// last attempt to get it failed, if it did.
func (m *Manager) Asked(entry string) (asked bool, failed error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.slots {
		if key.entry == entry {
			asked, failed = true, cmp.Or(failed, s.err)
		}
	}
	return asked, failed
}

type metrics struct {
	hits, misses, evicted prometheus.Counter
	signed                *prometheus.CounterVec
	batch                 prometheus.Histogram
}

func newMetrics(m *Manager, r prometheus.Registerer) *metrics {
	x := &metrics{
		hits:    prometheus.NewCounter(prometheus.CounterOpts{Name: "legation_svid_cache_hits_total", Help: "Identities that a caller found ready."}),
		misses:  prometheus.NewCounter(prometheus.CounterOpts{Name: "legation_svid_cache_misses_total", Help: "Identities that had to be signed for a caller."}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{Name: "legation_svid_cache_evictions_total", Help: "Unused SVIDs given up for want of room (cacheSize)."}),
		signed:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_svid_requests_total", Help: "Certificates asked of the control plane by outcome: signed, or the kind of error."}, []string{"outcome"}),
		batch:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "legation_svid_batch_size", Help: "Certificate requests per call.", Buckets: prometheus.ExponentialBuckets(1, 2, 9)}),
	}
	if r != nil {
		r.MustRegister(x.hits, x.misses, x.evicted, x.signed, x.batch, expiry{m})
	}
	return x
}

// expiry tells the end of each SVID held.
type expiry struct{ m *Manager }

var (
	expiryDesc = prometheus.NewDesc("legation_svid_expiry_timestamp_seconds", "When the SVID held ends, Unix time.", []string{"spiffe_id", "entry", "instance"}, nil)
	heldDesc   = prometheus.NewDesc("legation_svids_held", "SVIDs held.", nil, nil)
)

func (e expiry) Describe(c chan<- *prometheus.Desc) {
	c <- expiryDesc
	c <- heldDesc
}

func (e expiry) Collect(c chan<- prometheus.Metric) {
	all := e.m.Identities()
	for _, i := range all {
		c <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(i.NotAfterUnix), i.SpiffeId, i.Entry, i.Instance)
	}
	c <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(len(all)))
}
