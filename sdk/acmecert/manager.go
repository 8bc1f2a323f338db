package acmecert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
)

// A Manager keeps the certificates of Config.Domains. New makes one, Run does
// its work; what serves (GetCertificate, HTTPHandler and so on) may be used
// from New on.
type Manager struct {
	config     Config
	log        *slog.Logger
	metrics    *metrics
	storage    *pairs
	challenges *challenges
	issuer     *issuer
	transport  *transport
	staples    *staples
	slots      chan struct{} // one for each order that may run
	asks       chan struct{} // one for each question between orders

	shown atomic.Pointer[shown] // replaced whole, read by every handshake

	mu      sync.Mutex // guards what is below
	domains map[string]*domainState
	running context.CancelFunc
	stopped chan struct{}
}

// shown is what handshakes are answered with.
type shown struct {
	byName  map[string]*tls.Certificate
	changed chan struct{}
}

// New refuses a Config with everything that is wrong with it. It starts
// nothing and contacts nobody.
func New(c Config) (*Manager, error) {
	c.Domains = append([]string(nil), c.Domains...)
	c.Challenges = append([]Challenge(nil), c.Challenges...)
	c.defaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	counted, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		config: c, log: c.Logger, metrics: counted, storage: newPairs(c.Storage),
		slots: make(chan struct{}, c.Concurrency), asks: make(chan struct{}, maxAsks), domains: map[string]*domainState{},
	}
	m.challenges = newChallenges(&m.config, c.Storage)
	m.transport = newTransport(&m.config, counted)
	m.issuer = &issuer{config: &m.config, transport: m.transport, log: c.Logger, solvers: m.solvers()}
	if m.staples, err = newStaples(&m.config, counted); err != nil {
		return nil, err
	}
	m.shown.Store(&shown{byName: map[string]*tls.Certificate{}, changed: make(chan struct{})})
	for _, d := range c.Domains {
		m.domains[d] = &domainState{name: d, err: errors.New("not yet ordered or loaded")}
	}
	return m, nil
}

func (m *Manager) solvers() map[string]acmez.Solver {
	list := map[string]acmez.Solver{}
	for _, kind := range m.config.Challenges {
		if kind == DNS01 {
			list[string(kind)] = newDNSSolver(m.config.DNS, &m.config)
			continue
		}
		list[string(kind)] = solver{kind, m.challenges}
	}
	return list
}

// Run loads, orders and renews until ctx or Close ends it, then returns nil
// when everything it started has ended. An order that is on its way is given
// up. It can run once at a time.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	m.mu.Lock()
	if m.running != nil {
		m.mu.Unlock()
		return errors.New("acmecert: Run runs already")
	}
	m.running, m.stopped = cancel, stopped
	m.mu.Unlock()
	defer func() {
		m.transport.close()
		m.staples.close()
		m.mu.Lock()
		m.running = nil
		m.mu.Unlock()
		close(stopped)
	}()

	magic, stop := m.magic()
	defer stop()
	var working sync.WaitGroup
	for _, d := range m.domains {
		working.Go(func() { m.maintain(ctx, magic, d) })
	}
	working.Wait()
	return nil
}

// magic makes certmagic's configuration. Its cache exists because it must; it
// stays empty, and its own renewal, which is the process's, never begins.
func (m *Manager) magic() (*certmagic.Config, func()) {
	const never = 100 * 365 * 24 * time.Hour
	var config *certmagic.Config
	log := bridged(m.log)
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:  func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil },
		OCSPCheckInterval: never, RenewCheckInterval: never, Logger: log,
	})
	config = certmagic.New(cache, certmagic.Config{
		Issuers:    []certmagic.Issuer{m.issuer},
		KeySource:  certmagic.StandardKeyGenerator{KeyType: certmagic.KeyType(m.config.KeyType)},
		Storage:    m.storage,
		OCSP:       certmagic.OCSPConfig{DisableStapling: true},
		DisableARI: true,
		Logger:     log,
		OnEvent:    func(context.Context, string, map[string]any) error { return nil },
	})
	return config, cache.Stop
}

// Close ends Run and waits until it has ended. Handshakes go on being answered
// with what is there.
func (m *Manager) Close() error {
	m.mu.Lock()
	cancel, stopped := m.running, m.stopped
	m.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	<-stopped
	return nil
}

// Status is how one domain stands.
type Status struct {
	Domain string
	// Certificate is the leaf that is shown; nil before the first.
	Certificate *x509.Certificate
	// RenewAt is when it is renewed: the CA's word (RFC 9773) or a share of its
	// life; zero without a certificate.
	RenewAt time.Time
	// Stapled says that an OCSP response is shown with it.
	Stapled bool
	// Err is why the last attempt failed; nil when nothing is wrong. NextTry
	// is when the next one is made.
	Err     error
	NextTry time.Time
}

// Status tells of every domain, in the order of Config.Domains.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Status, 0, len(m.config.Domains))
	for _, name := range m.config.Domains {
		d := m.domains[name]
		s := Status{Domain: name, RenewAt: d.renewAt, Err: d.err, NextTry: d.nextTry}
		if c := d.certificate; c != nil {
			s.Certificate, s.Stapled = c.Leaf, len(c.OCSPStaple) > 0
		}
		list = append(list, s)
	}
	return list
}

// Wait returns when every domain has a certificate. When ctx ends first, the
// error says which have none and why.
func (m *Manager) Wait(ctx context.Context) error {
	for {
		_, changed := m.Certificates()
		if m.missing() == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			why := m.missing() // what is wrong now, not when the wait began
			if why == nil {
				return nil
			}
			return fmt.Errorf("acmecert: %w: no certificate of %w", context.Cause(ctx), why)
		}
	}
}

// missing says which domains have no certificate and why; nil: none.
func (m *Manager) missing() error {
	var missing []error
	for _, s := range m.Status() {
		if s.Certificate == nil {
			missing = append(missing, fmt.Errorf("%s: %w", s.Domain, s.Err))
		}
	}
	return errors.Join(missing...)
}

// Certificates returns what is shown, by domain: chain and key, with the OCSP
// response. The map must not be changed. The channel is closed when there is
// something else.
func (m *Manager) Certificates() (map[string]*tls.Certificate, <-chan struct{}) {
	s := m.shown.Load()
	return s.byName, s.changed
}

// show replaces what handshakes get under one name.
func (m *Manager) show(name string, c *tls.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.shown.Load()
	next := &shown{byName: maps.Clone(old.byName), changed: make(chan struct{})}
	next.byName[name] = c
	d := m.domains[name]
	if d.certificate == nil || d.certificate.Leaf != c.Leaf {
		d.err = nil // at once: who waited for the certificate looks now
	}
	d.certificate, d.renewAt = c, m.renewalTime(d, c.Leaf)
	m.shown.Store(next)
	close(old.changed)
	m.metrics.notAfter.WithLabelValues(name).Set(float64(c.Leaf.NotAfter.Unix()))
}

var _ http.RoundTripper = (*transport)(nil)
