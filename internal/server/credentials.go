package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// credentials are the server's own identity, kept renewed, and the verifier
// of whoever connects.
type credentials struct {
	td        spiffeid.TrustDomain
	authority *ca.Authority
	clock     clock.Clock
	log       *slog.Logger
	renewals  *renewals

	cert     atomic.Pointer[tls.Certificate]
	verifier atomic.Pointer[verifier] // replaced whole when the authority's state changes
}

type verifier struct {
	roots chaincheck.Roots
	crls  *chaincheck.CRLSet
}

func newCredentials(ctx context.Context, td spiffeid.TrustDomain, authority *ca.Authority, c clock.Clock, log *slog.Logger, r prometheus.Registerer, dnsNames []string) (*credentials, error) {
	cr := &credentials{td: td, authority: authority, clock: c, log: log}
	state, _ := authority.State()
	if err := cr.trust(state); err != nil {
		return nil, err
	}
	var err error
	if cr.renewals, err = newRenewals(renewalParams{TrustDomain: td, Authority: authority, Clock: c, Log: log, Registerer: r, DNSNames: dnsNames, Updated: cr.serve}); err != nil {
		return nil, err
	}
	return cr, cr.renewals.first(ctx)
}

func (cr *credentials) trust(state *ca.State) error {
	roots := make([]*x509.Certificate, 0, len(state.Bundle.X509Roots))
	for _, der := range state.Bundle.X509Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read the bundle's roots: %w", err)
		}
		roots = append(roots, root)
	}
	crls, err := chaincheck.NewCRLSet(state.CRL.Lists)
	if err != nil {
		return fmt.Errorf("read the authority's CRLs: %w", err)
	}
	cr.verifier.Store(&verifier{roots: chaincheck.Roots{cr.td: roots}, crls: crls})
	return nil
}

// serve takes over a new certificate. All roots are presented too, in the
// bundle's order: an agent that pinned their hash recognises them.
func (cr *credentials) serve(c *tls.Certificate) {
	state, _ := cr.authority.State()
	chain := append(append([][]byte{}, c.Certificate...), state.Bundle.X509Roots...)
	cr.cert.Store(&tls.Certificate{Certificate: chain, PrivateKey: c.PrivateKey, Leaf: c.Leaf})
}

// run renews and follows the authority. Neither waits for the other: who was
// revoked is refused also while nothing can be signed.
func (cr *credentials) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cr.follow(ctx) })
	group.Go(func() error { return cr.renewals.run(ctx) })
	return group.Wait()
}

// follow verifies by the authority's newest state.
func (cr *credentials) follow(ctx context.Context) error {
	for {
		state, changed := cr.authority.State()
		if err := cr.trust(state); err != nil {
			cr.log.Error("the last good trust stays", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// config is for the agents' and operators' port: TLS 1.3, a certificate is
// asked for and, when shown, must be an SVID of this trust domain that is not
// revoked. Who may call without one is settled by the matrix of callers.
func (cr *credentials) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequestClientCert,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cr.cert.Load(), nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			v := cr.verifier.Load()
			_, err := chaincheck.Verify(chaincheck.Params{
				Chain: cs.PeerCertificates, Roots: v.roots, CRLs: v.crls, Revocation: chaincheck.Require, Usage: chaincheck.Client, Now: cr.clock.Now(),
			})
			return err
		},
	}
}
