package acmecert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// domainState is what is known of one domain. Its maintain writes it, under
// the Manager's lock where others read.
type domainState struct {
	name        string
	certificate *tls.Certificate // as shown; read by others
	renewAt     time.Time        // read by others
	nextTry     time.Time        // read by others
	err         error            // read by others

	failures  int
	ari       acme.RenewalInfo
	ariOf     string // serial that ari is about
	askAt     time.Time
	reloadAt  time.Time
	stapleAt  time.Time
	loadedPEM string // what certificate was made of
	stapleEnd time.Time
	revoked   string // serial that OCSP says is revoked
	// How many certificates in a row were revoked.
	revocations int
}

const (
	longestBackoff = 6 * time.Hour
	shortestTick   = 50 * time.Millisecond
	// A CA that always says "renew now" is not asked more often than this
	// share of a certificate's life, or an hour where that is shorter.
	renewNoOftener = 0.1
	// Whatever the CA says, this share of the life is kept in reserve.
	reserve = 0.1
)

// maintain keeps one domain's certificate until ctx ends.
func (m *Manager) maintain(ctx context.Context, magic *certmagic.Config, d *domainState) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next := m.step(ctx, magic, d)
		timer.Reset(max(next.Sub(m.config.Now()), shortestTick))
	}
}

// step does what is due and returns when to look again.
func (m *Manager) step(ctx context.Context, magic *certmagic.Config, d *domainState) time.Time {
	now := m.config.Now()
	if !now.Before(d.reloadAt) {
		d.reloadAt = now.Add(spread(m.config.ReloadEvery))
		err := m.reload(ctx, d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.unreadable(ctx, d, err)
		} else if due, _ := m.due(d); !due {
			m.note(d, func() { d.err = nil })
		}
	}
	m.askWhen(ctx, d)
	if due, renewAt := m.due(d); due && !m.config.Now().Before(d.nextTry) {
		err := m.order(ctx, magic, d)
		if err == nil {
			m.askWhen(ctx, d)
			err = m.lasting(d)
		}
		if err != nil {
			m.failed(ctx, d, err)
		} else {
			m.succeeded(d)
		}
	} else if !due {
		m.note(d, func() { d.renewAt = renewAt })
	}
	m.staple(ctx, d)
	return m.next(d)
}

func (m *Manager) note(d *domainState, f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *Manager) next(d *domainState) time.Time {
	due, renewAt := m.due(d)
	m.note(d, func() { d.renewAt = renewAt })
	next := d.reloadAt
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if due {
		earlier(d.nextTry)
		return next
	}
	earlier(renewAt)
	earlier(d.askAt)
	earlier(d.stapleAt)
	return next
}

// lasting refuses to go on at once when what was just issued is due again:
// that would be for ever.
func (m *Manager) lasting(d *domainState) error {
	if due, at := m.due(d); due {
		if d.certificate == nil {
			return errors.New("the certificate was stored and is not there")
		}
		return fmt.Errorf("the new certificate (valid from %s to %s) is due for renewal since %s already: set RenewAt higher, or see what the CA issues",
			d.certificate.Leaf.NotBefore.Format(time.RFC3339), d.certificate.Leaf.NotAfter.Format(time.RFC3339), at.Format(time.RFC3339))
	}
	return nil
}

// due says whether an order is due, and when it is.
func (m *Manager) due(d *domainState) (bool, time.Time) {
	if d.certificate == nil {
		return true, time.Time{}
	}
	if d.revoked == serial(d.certificate.Leaf) {
		return true, time.Time{}
	}
	at := m.renewalTime(d, d.certificate.Leaf)
	return !m.config.Now().Before(at), at
}

// renewalTime is the CA's (RFC 9773 4.2), within bounds, or a share of the
// certificate's life.
func (m *Manager) renewalTime(d *domainState, leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotBefore.Add(time.Duration(float64(life) * m.config.RenewAt))
	if d.ariOf == serial(leaf) && !d.ari.SelectedTime.IsZero() {
		earliest := leaf.NotBefore.Add(min(time.Hour, time.Duration(float64(life)*renewNoOftener)))
		latest := leaf.NotAfter.Add(-time.Duration(float64(life) * reserve))
		at = d.ari.SelectedTime
		if at.Before(earliest) {
			at = earliest
		}
		if at.After(latest) {
			at = latest
		}
	}
	return at
}

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// askWhen asks the CA when to renew, as often as it wants to be asked.
func (m *Manager) askWhen(ctx context.Context, d *domainState) {
	now := m.config.Now()
	if m.config.NoARI || d.certificate == nil || now.Before(d.askAt) && d.ariOf == serial(d.certificate.Leaf) {
		return
	}
	leaf := d.certificate.Leaf
	var info acme.RenewalInfo
	err := m.ask(ctx, 2*m.config.HTTPTimeout, func(ctx context.Context) (err error) {
		info, err = m.issuer.renewalInfo(ctx, leaf)
		return err
	})
	wait := 6 * time.Hour
	if info.RetryAfter != nil {
		wait = min(max(info.RetryAfter.Sub(now), time.Minute), 24*time.Hour) // RFC 9773 4.3
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); wait > life/10 {
		wait = max(life/10, time.Second)
	}
	d.askAt = now.Add(wait)
	if err != nil {
		m.log.Debug("the CA does not say when to renew", "domain", d.name, "error", err)
		if d.ariOf == serial(leaf) {
			return // what it said before stays
		}
	}
	if d.ariOf == serial(leaf) && info.SameWindow(d.ari) {
		info.SelectedTime = d.ari.SelectedTime // chosen once for a window
	}
	d.ari, d.ariOf = info, serial(leaf)
}

// maxAsks is how many questions between orders, to the CA when to renew and to
// OCSP responders, are on their way at once.
const maxAsks = 20

// ask runs f when not too many ask already, all within a time: after a start
// with many certificates each is due to be asked about at once.
func (m *Manager) ask(ctx context.Context, within time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	select {
	case m.asks <- struct{}{}:
		defer func() { <-m.asks }()
		return f(ctx)
	case <-ctx.Done():
		return fmt.Errorf("too many ask at once: %w", context.Cause(ctx))
	}
}

// reload shows what lies in the Storage, where it is another certificate.
func (m *Manager) reload(ctx context.Context, d *domainState) error {
	ctx, cancel := context.WithTimeout(ctx, m.config.HTTPTimeout)
	defer cancel()
	stored, err := m.storage.load(ctx, pairKey(m.issuer.IssuerKey(), d.name))
	if err != nil {
		return err
	}
	if string(stored.Certificate) == d.loadedPEM {
		return nil
	}
	c, err := m.usable(d.name, stored)
	if err != nil {
		return err
	}
	if c == nil || d.certificate != nil && c.Leaf.NotBefore.Before(d.certificate.Leaf.NotBefore) {
		return nil // older than what is shown: put back, or not yet written
	}
	d.loadedPEM, d.stapleAt = string(stored.Certificate), time.Time{}
	m.show(d.name, c)
	m.log.Info("a certificate is in use", "domain", d.name, "serial", serial(c.Leaf), "not_after", c.Leaf.NotAfter)
	return nil
}

// usable reads a stored certificate; nil when it has ended, so that another is
// ordered.
func (m *Manager) usable(name string, stored *pair) (*tls.Certificate, error) {
	key, err := certmagic.PEMDecodePrivateKey(stored.Key)
	if err != nil {
		return nil, fmt.Errorf("the stored certificate of %s has no usable key: %w", name, err)
	}
	chain, err := parseChain(stored.Certificate)
	if err == nil && !m.config.Now().Before(chain[0].NotAfter) {
		return nil, nil
	}
	if chain, err = checkIssued(stored.Certificate, key.Public(), []string{name}, m.config.Now()); err != nil {
		return nil, fmt.Errorf("the stored certificate of %s is refused: %w", name, err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, link := range chain {
		c.Certificate = append(c.Certificate, link.Raw)
	}
	return c, nil
}

// order gets a certificate, unless a replica just did.
func (m *Manager) order(ctx context.Context, magic *certmagic.Config, d *domainState) error {
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := m.transport.paused(); err != nil {
		return err
	}
	lock := "renew_" + strings.ReplaceAll(d.name, "*", "wildcard")
	if err := m.storage.Lock(ctx, lock); err != nil {
		return fmt.Errorf("take turns with the replicas: %w", err)
	}
	defer unlock(ctx, m.storage, lock, m.log)
	if err := m.reload(ctx, d); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("load the certificate: %w", err)
	}
	if due, _ := m.due(d); !due {
		return nil
	}
	if d.certificate != nil {
		ctx = context.WithValue(ctx, replacesKey{}, d.certificate.Leaf)
	}
	var err error
	if m.storage.Exists(ctx, pairKey(m.issuer.IssuerKey(), d.name)) {
		err = magic.RenewCertSync(ctx, d.name, true)
	} else {
		err = magic.ObtainCertSync(ctx, d.name)
	}
	if err != nil {
		return err
	}
	return m.reload(ctx, d)
}

// postponedLocked makes the next attempt not before a time; what was put off for
// longer, by the CA's word, stays so.
func (d *domainState) postponedLocked(at time.Time) {
	if at.After(d.nextTry) {
		d.nextTry = at
	}
}

// unreadable notes that the Storage does not give the certificate; nothing is
// ordered over what cannot be read, until it is looked at again.
func (m *Manager) unreadable(ctx context.Context, d *domainState, err error) {
	if ctx.Err() != nil {
		return
	}
	d.reloadAt = m.config.Now().Add(spread(min(m.config.RetryAfter, m.config.ReloadEvery)))
	m.note(d, func() {
		d.err = fmt.Errorf("load the certificate: %w", err)
		d.postponedLocked(d.reloadAt)
	})
	m.log.Error("the stored certificate cannot be used", "domain", d.name, "next_try", d.reloadAt, "error", err)
}

func (m *Manager) succeeded(d *domainState) {
	d.failures = 0
	m.note(d, func() { d.err, d.nextTry = nil, time.Time{} })
}

// failed notes why, and when the next attempt may be made.
func (m *Manager) failed(ctx context.Context, d *domainState, err error) {
	now := m.config.Now()
	if ctx.Err() != nil {
		m.note(d, func() { d.nextTry = now })
		return
	}
	d.failures++
	at := now.Add(m.backoff(d.failures))
	var limited *RateLimited
	if errors.As(err, &limited) && limited.Until.After(at) {
		at = limited.Until.Add(time.Duration(rand.Int64N(int64(time.Second))))
	}
	m.note(d, func() { d.err, d.nextTry = err, at })
	attrs := []any{"domain", d.name, "failures", d.failures, "next_try", at, "error", err}
	if d.certificate != nil {
		attrs = append(attrs, "still_shown_until", d.certificate.Leaf.NotAfter)
	}
	m.log.Error("no new certificate", attrs...)
}

// backoff is the wait after so many failures in a row.
func (m *Manager) backoff(failures int) time.Duration {
	wait := longestBackoff
	if doublings := min(failures-1, 30); m.config.RetryAfter < longestBackoff>>doublings {
		wait = m.config.RetryAfter << doublings
	}
	return spread(wait)
}

// spread takes up to a tenth off, so that many do not come at once.
func spread(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - time.Duration(rand.Int64N(int64(d/10)))
}
