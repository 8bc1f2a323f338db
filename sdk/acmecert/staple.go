package acmecert

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/legation-io/legation/sdk/egress"
)

const (
	stapleTimeout = 10 * time.Second
	maxStaple     = 64 << 10
	stapleRetry   = 10 * time.Minute
	clockError    = 5 * time.Minute
)

// staples fetches OCSP responses (RFC 6960) about our own certificates.
type staples struct {
	client  *http.Client
	now     func() time.Time
	metrics *metrics
}

// newStaples reaches public addresses and those of AllowOCSP: a responder's
// URL was written by others.
func newStaples(c *Config, m *metrics) (*staples, error) {
	guard, err := egress.New(egress.Config{Allow: c.AllowOCSP, DialTimeout: stapleTimeout})
	if err != nil {
		return nil, fmt.Errorf("acmecert: AllowOCSP: %w", err)
	}
	return &staples{now: c.Now, metrics: m, client: guard.Client(stapleTimeout)}, nil
}

func (s *staples) close() { s.client.CloseIdleConnections() }

// fetch returns a response that is good for the leaf now.
func (s *staples) fetch(ctx context.Context, leaf, issuer *x509.Certificate) ([]byte, *ocsp.Response, error) {
	responder := leaf.OCSPServer[0]
	if u, err := url.Parse(responder); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("the OCSP responder %q is not a URL of http", clean(responder))
	}
	question, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, responder, bytes.NewReader(question))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", "application/ocsp-request")
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the OCSP responder %s answered %d", r.URL.Host, resp.StatusCode)
	}
	der, err := io.ReadAll(io.LimitReader(resp.Body, maxStaple+1))
	if err != nil {
		return nil, nil, err
	}
	if len(der) > maxStaple {
		return nil, nil, fmt.Errorf("the OCSP response of %s is longer than %d bytes", r.URL.Host, maxStaple)
	}
	parsed, err := checkStaple(der, leaf, issuer, s.now())
	if err != nil {
		return nil, nil, fmt.Errorf("the OCSP response of %s is refused: %w", r.URL.Host, err)
	}
	return der, parsed, nil
}

// checkStaple verifies what will be shown: signed by the issuer or by a
// responder that it appointed (RFC 6960 4.2.2.2), about this certificate, now.
func checkStaple(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, error) {
	r, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	if err != nil {
		return nil, err
	}
	if c := r.Certificate; c != nil && !c.Equal(issuer) {
		if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return nil, errors.New("its signer is not appointed for OCSP (RFC 6960 4.2.2.2)")
		}
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return nil, errors.New("its signer's certificate is not valid now")
		}
	}
	if r.ThisUpdate.After(now.Add(clockError)) {
		return nil, fmt.Errorf("it is of %s, which is yet to come", r.ThisUpdate.Format(time.RFC3339))
	}
	if !r.NextUpdate.After(now) {
		return nil, fmt.Errorf("it was good until %s", r.NextUpdate.Format(time.RFC3339))
	}
	return r, nil
}

// staple keeps the OCSP response of what is shown fresh.
func (m *Manager) staple(ctx context.Context, d *domainState) {
	now := m.config.Now()
	c := d.certificate
	if m.config.NoStaples || c == nil || len(c.Leaf.OCSPServer) == 0 || len(c.Certificate) < 2 || now.Before(d.stapleAt) {
		return
	}
	var der []byte
	var response *ocsp.Response
	err := m.ask(ctx, 2*stapleTimeout, func(ctx context.Context) (err error) {
		der, response, err = m.fetchStaple(ctx, c)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		m.metrics.staples.WithLabelValues("error").Inc()
		m.log.Warn("no OCSP response", "domain", d.name, "error", clean(err.Error()), "old_until", d.stapleEnd)
		d.stapleAt = now.Add(spread(stapleRetry))
		if c.OCSPStaple != nil && !now.Before(d.stapleEnd) {
			m.restaple(d, nil)
		}
		return
	}
	m.metrics.staples.WithLabelValues("ok").Inc()
	// Half way to its end, and never so that it is asked without pause.
	d.stapleAt = now.Add(max(response.NextUpdate.Sub(now)/2, time.Minute))
	d.stapleEnd = response.NextUpdate
	switch response.Status {
	case ocsp.Good:
		d.revocations = 0
		if !bytes.Equal(der, c.OCSPStaple) {
			m.restaple(d, der)
		}
	case ocsp.Revoked:
		m.restaple(d, nil)
		if d.revoked == serial(c.Leaf) {
			return // another is being ordered since it was first said
		}
		m.log.Error("the CA has revoked the certificate: another with a new key is ordered", "domain", d.name, "serial", serial(c.Leaf), "revoked_at", response.RevokedAt)
		d.revoked = serial(c.Leaf)
		if d.revocations++; d.revocations > 1 { // a CA that revokes what it issues is not asked without pause
			m.note(d, func() { d.postponedLocked(now.Add(m.backoff(d.revocations - 1))) })
		}
	default:
		m.restaple(d, nil)
	}
}

func (m *Manager) fetchStaple(ctx context.Context, c *tls.Certificate) ([]byte, *ocsp.Response, error) {
	issuer, err := x509.ParseCertificate(c.Certificate[1])
	if err != nil {
		return nil, nil, err
	}
	return m.staples.fetch(ctx, c.Leaf, issuer)
}

// restaple shows the same certificate with another response.
func (m *Manager) restaple(d *domainState, der []byte) {
	if der == nil && d.certificate.OCSPStaple == nil {
		return
	}
	c := *d.certificate
	c.OCSPStaple = der
	m.show(d.name, &c)
}
