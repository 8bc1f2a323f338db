package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/sdk/renewal"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// renewals are the certificates that the control plane keeps renewed for
// itself: so far its own. Each replica has its own key and certificate, in
// memory only, so the store is one in memory too.
type renewals struct {
	store     *renewal.Memory
	scheduler *renewal.Scheduler
}

type renewalParams struct {
	TrustDomain spiffeid.TrustDomain
	Authority   *ca.Authority
	Clock       clock.Clock
	Log         *slog.Logger
	Registerer  prometheus.Registerer
	DNSNames    []string
	// Updated gets each new certificate.
	Updated func(*tls.Certificate)
}

// between is the least time between two attempts to renew, be it that one
// failed or that what was got is short-lived.
const between = 10 * time.Second

// ownIPs are in the server's certificate for who connects on this machine.
var ownIPs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

func newRenewals(p renewalParams) (*renewals, error) {
	half := int32(50)
	own := &renewal.Certificate{
		Metadata: renewal.ObjectMeta{Namespace: "system", Name: "control-plane"},
		Spec: renewal.CertificateSpec{
			SecretName: "control-plane", IssuerRef: renewal.IssuerRef{Group: "legation.io", Kind: "Authority", Name: p.Authority.Name()},
			URIs: []string{node.ServerID(p.TrustDomain).String()}, DNSNames: p.DNSNames, RenewBeforePercentage: &half,
			Usages: []renewal.KeyUsage{"digital signature", "server auth", "client auth"},
		},
	}
	for _, ip := range ownIPs {
		own.Spec.IPAddresses = append(own.Spec.IPAddresses, ip.String())
	}
	r := &renewals{}
	var err error
	if r.store, err = renewal.NewMemory(own); err != nil {
		return nil, fault.New(fault.Invalid, "the server's own certificate: %w", err)
	}
	r.scheduler, err = renewal.New(renewal.Config{
		Store: r.store, Issuers: renewal.Static(map[string]renewal.Issuer{p.Authority.Name(): authorityIssuer{p}}),
		Updated: func(_ *renewal.Certificate, s *renewal.Secret) {
			c, err := s.TLS()
			if err != nil {
				p.Log.Error("own certificate cannot be used", "error", err)
				return
			}
			p.Updated(c)
		},
		PrivateKey: renewal.CertificatePrivateKey{Algorithm: renewal.ECDSA, Size: 256, Encoding: renewal.PKCS8},
		Backoff:    renewal.Backoff{Min: between, Max: time.Minute}, MinInterval: between, IssueTimeout: 30 * time.Second, Drain: grace,
		Logger: p.Log, Registerer: p.Registerer, Now: p.Clock.Now,
	})
	return r, err
}

// first issues what is not there; nothing is served before.
func (r *renewals) first(ctx context.Context) error {
	if err := r.scheduler.RunOnce(ctx); err != nil {
		return fmt.Errorf("issue the server's own certificate: %w", err)
	}
	return nil
}

func (r *renewals) run(ctx context.Context) error { return r.scheduler.Run(ctx) }

// list is what is renewed and how it stands, for people.
func (r *renewals) list() []*renewal.Certificate {
	refs, err := r.store.List(context.Background())
	if err != nil {
		return nil // a store in memory answers
	}
	var out []*renewal.Certificate
	for _, ref := range refs {
		if c, err := r.store.Get(context.Background(), ref.Key); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// authorityIssuer asks this control plane's authority. The names are those
// that the configuration gives, whatever the request says.
type authorityIssuer struct{ renewalParams }

// Issue implements renewal.Issuer.
func (i authorityIssuer) Issue(ctx context.Context, r *renewal.Request) (*renewal.Issued, error) {
	got := i.Authority.SignX509(ctx, []ca.X509Request{{
		Profile: ca.ProfileServer, CSR: r.CSR, ID: node.ServerID(i.TrustDomain), TTL: r.Duration, DNSNames: i.DNSNames, IPs: ownIPs,
		Namespace: "system", Instance: "server",
	}})[0]
	switch fault.KindOf(got.Err) {
	case fault.Denied, fault.Invalid:
		return nil, renewal.Permanent("%w", got.Err)
	}
	if got.Err != nil {
		return nil, got.Err
	}
	return &renewal.Issued{Chain: got.Chain}, nil
}
