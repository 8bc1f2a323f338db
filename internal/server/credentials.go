package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/sdk/chaincheck"
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
	dnsNames  []string

	cert     atomic.Pointer[tls.Certificate]
	verifier atomic.Pointer[verifier] // replaced whole when the authority's state changes
}

type verifier struct {
	roots chaincheck.Roots
	crls  *chaincheck.CRLSet
}

func newCredentials(ctx context.Context, td spiffeid.TrustDomain, authority *ca.Authority, c clock.Clock, log *slog.Logger, dnsNames []string) (*credentials, error) {
	cr := &credentials{td: td, authority: authority, clock: c, log: log, dnsNames: dnsNames}
	state, _ := authority.State()
	if err := cr.trust(state); err != nil {
		return nil, err
	}
	return cr, cr.renew(ctx)
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

// renew makes a key, signs for it, and serves it. All roots are presented too,
// in the bundle's order: an agent that pinned their hash recognises them.
func (cr *credentials) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	r := cr.authority.SignX509(ctx, []ca.X509Request{{
		Profile: ca.ProfileServer, CSR: csr, ID: node.ServerID(cr.td), DNSNames: cr.dnsNames,
		IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, Namespace: "system", Instance: "server",
	}})[0]
	if r.Err != nil {
		return fmt.Errorf("issue the server's own certificate: %w", r.Err)
	}
	leaf, err := x509.ParseCertificate(r.Chain[0])
	if err != nil {
		return err
	}
	state, _ := cr.authority.State()
	chain := append(append([][]byte{}, r.Chain...), state.Bundle.X509Roots...)
	cr.cert.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	cr.log.Debug("own certificate issued", "serial", r.Serial, "not_after", r.NotAfter)
	return nil
}

// run renews at half life and follows the authority. Neither waits for the
// other: who was revoked is refused also while nothing can be signed.
func (cr *credentials) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cr.follow(ctx) })
	group.Go(func() error { return cr.keep(ctx) })
	return group.Wait()
}

// between is the least time between two attempts to renew, be it that one
// failed or that what was got is short-lived.
const between = 10 * time.Second

func (cr *credentials) keep(ctx context.Context) error {
	for {
		leaf := cr.cert.Load().Leaf
		half := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
		if err := clock.Until(ctx, cr.clock, half); err != nil {
			return err
		}
		if err := cr.renew(ctx); err != nil {
			cr.log.Error("own certificate not renewed; trying again", "ends", leaf.NotAfter, "error", err)
		}
		pause := time.NewTimer(between)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
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
