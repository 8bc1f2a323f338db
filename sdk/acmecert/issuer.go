package acmecert

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// errRefused is in the error of an order whose certificate is not used.
var errRefused = errors.New("the issued certificate is refused")

// issuer orders certificates: what certmagic calls when it holds the lock of a
// name and has made a key.
type issuer struct {
	config    *Config
	transport *transport
	solvers   map[string]acmez.Solver
	log       *slog.Logger

	mu      sync.Mutex // guards what follows
	client  *acmez.Client
	ari     *acmez.Client
	created time.Time
}

// metadata is what is stored beside a certificate.
type metadata struct {
	Directory string `json:"directory"`
	URL       string `json:"url"`
	Account   string `json:"account"`
}

type replacesKey struct{}

// IssuerKey implements certmagic.Issuer: the directory as one path segment.
func (i *issuer) IssuerKey() string {
	u, err := url.Parse(i.config.Directory)
	if err != nil {
		return "acme"
	}
	key := u.Host
	if path := strings.Trim(strings.NewReplacer("/", "-", "\\", "-").Replace(u.Path), "-"); path != "" {
		key += "-" + path
	}
	return key
}

// Issue implements certmagic.Issuer.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	o := &order{}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, orderKey{}, o), i.config.OrderTimeout)
	defer cancel()
	begun := time.Now()
	issued, err := i.issue(ctx, csr)
	i.transport.metrics.took.Observe(time.Since(begun).Seconds())
	if err == nil {
		i.transport.metrics.orders.WithLabelValues("ok").Inc()
		return issued, nil
	}
	var limited *RateLimited
	o.mu.Lock()
	if o.limited != nil && !errors.As(err, &limited) {
		err = fmt.Errorf("%w: %w", o.limited, err)
	}
	o.mu.Unlock()
	switch {
	case errors.As(err, &limited):
		i.transport.metrics.orders.WithLabelValues("limited").Inc()
	case errors.Is(err, errRefused):
		i.transport.metrics.orders.WithLabelValues("refused").Inc()
	default:
		i.transport.metrics.orders.WithLabelValues("error").Inc()
	}
	return nil, fmt.Errorf("order a certificate of %s: %w", i.config.Directory, &shortened{err})
}

// shortened keeps the chain of an error and not the length of what a CA wrote.
type shortened struct{ err error }

func (s *shortened) Error() string { return clean(s.err.Error()) }
func (s *shortened) Unwrap() error { return s.err }

func (i *issuer) issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	client, dir, err := i.acme(ctx)
	if err != nil {
		return nil, err
	}
	account, err := i.registered(ctx, client, dir)
	if err != nil {
		return nil, err
	}
	issued, err := i.obtain(ctx, client, account, csr)
	var problem acme.Problem
	if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist {
		i.log.Warn("the CA does not know the ACME account any more, another is registered", "account", account.Location)
		if err := i.forget(ctx, account); err != nil {
			return nil, err
		}
		if account, err = i.registered(ctx, client, dir); err != nil {
			return nil, err
		}
		issued, err = i.obtain(ctx, client, account, csr)
	}
	return issued, err
}

func (i *issuer) obtain(ctx context.Context, client *acmez.Client, account acme.Account, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	if replaced, ok := ctx.Value(replacesKey{}).(*x509.Certificate); ok && !i.config.NoARI && len(replaced.AuthorityKeyId) > 0 {
		params.Replaces = replaced // RFC 9773 5
	}
	chains, err := client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the CA sent no certificate")
	}
	if _, err := checkIssued(chains[0].ChainPEM, csr.PublicKey, csr.DNSNames, i.config.Now()); err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return &certmagic.IssuedCertificate{
		Certificate: chains[0].ChainPEM,
		Metadata:    metadata{Directory: i.config.Directory, URL: clean(chains[0].URL), Account: clean(account.Location)},
	}, nil
}

// acme returns the client for orders, made anew when the directory has aged, and the
// directory.
func (i *issuer) acme(ctx context.Context) (*acmez.Client, acme.Directory, error) {
	httpClient := i.transport.client(i.config.HTTPTimeout)
	dir, err := i.transport.load(ctx, httpClient)
	if err != nil {
		return nil, dir, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.client == nil || i.config.Now().Sub(i.created) > directoryLife {
		i.client, i.ari, i.created = i.newClient(httpClient, forOrders), i.newClient(httpClient, "ari-"), i.config.Now()
	}
	return i.client, dir, nil
}

func (i *issuer) newClient(httpClient *http.Client, purpose string) *acmez.Client {
	// acmez keeps directories by URL for the whole process; the fragment,
	// which is never sent, makes this one ours.
	var own [8]byte
	_, _ = rand.Read(own[:]) // never fails (crypto/rand)
	return &acmez.Client{
		Client: &acme.Client{
			Directory:   i.config.Directory + "#" + purpose + hex.EncodeToString(own[:]),
			HTTPClient:  httpClient,
			UserAgent:   strings.TrimSpace(i.config.UserAgent + " legation-acmecert"),
			PollTimeout: i.config.OrderTimeout,
			Logger:      slog.New(bounded{i.log.Handler()}),
		},
		ChallengeSolvers: i.solvers,
	}
}

// renewalInfo asks the CA when to renew (RFC 9773 4); the zero value when it
// does not say.
func (i *issuer) renewalInfo(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error) {
	_, dir, err := i.acme(ctx)
	if err != nil || dir.RenewalInfo == "" || len(leaf.AuthorityKeyId) == 0 {
		return acme.RenewalInfo{}, err
	}
	i.mu.Lock()
	client := i.ari
	i.mu.Unlock()
	return client.GetRenewalInfo(ctx, leaf)
}
