package upstream

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"time"

	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Identity is the node's own X.509-SVID with its key, immutable. The key was
// made here and leaves only into the sealed cache.
type Identity struct {
	ID   spiffeid.ID
	Node string
	// Chain is leaf first; no root.
	Chain  []*x509.Certificate
	Key    crypto.Signer
	Serial string // lower-case hex
	// RenewAt is half of what was left when it was issued (certificates are
	// back-dated), give or take a tenth.
	RenewAt time.Time
}

// NotAfter is when the certificate ends.
func (i *Identity) NotAfter() time.Time { return i.Chain[0].NotAfter }

// TLS is the identity as crypto/tls takes it.
func (i *Identity) TLS() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: i.Key, Leaf: i.Chain[0]}
	for _, cert := range i.Chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	return key, nil
}

// newCSR asks for the node's certificate. Before attestation the node does
// not know its name; id is then zero.
func newCSR(key crypto.Signer, id spiffeid.ID, dnsNames []string) ([]byte, error) {
	template := &x509.CertificateRequest{DNSNames: dnsNames}
	if !id.IsZero() {
		template.URIs = []*url.URL{id.URL()}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make the node's certificate request: %w", err)
	}
	return csr, nil
}

// newIdentity checks what the control plane issued before it is believed: an
// agent of this trust domain, for our key, under our roots, valid now.
func (l *Link) newIdentity(key crypto.Signer, chain [][]byte, roots []*x509.Certificate) (*Identity, error) {
	certs, id, err := l.verifyChain(chain, roots, usageClient)
	if err != nil {
		return nil, fmt.Errorf("the node's certificate: %w", err)
	}
	name, err := attestnode.NameOf(l.p.TrustDomain, id)
	if err != nil {
		return nil, fmt.Errorf("the node's certificate: %w", err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(certs[0].PublicKey) {
		return nil, fault.New(fault.Invalid, "the node's certificate is for another key than the one it was asked for")
	}
	now := l.p.Clock.Now()
	left := certs[0].NotAfter.Sub(now)
	jitter := time.Duration((mathrand.Float64() - 0.5) * 0.2 * float64(left))
	return &Identity{ID: id, Node: name, Chain: certs, Key: key, Serial: certs[0].SerialNumber.Text(16),
		RenewAt: now.Add(max(left/2+jitter, 100*time.Millisecond))}, nil
}

const identityName = "identity"

// storedIdentity is the cached form, ASN.1.
type storedIdentity struct {
	Version int
	Key     []byte // PKCS #8
	Chain   [][]byte
	Roots   [][]byte // it was issued under
	RenewAt int64    // Unix seconds
}

// keepIdentity makes the identity survive a restart, then uses it.
func (l *Link) keepIdentity(id *Identity, roots []*x509.Certificate) {
	defer l.identity.Store(id)
	if l.p.Cache == nil {
		return
	}
	key, err := x509.MarshalPKCS8PrivateKey(id.Key)
	if err == nil {
		defer clear(key)
		stored := storedIdentity{Version: 1, Key: key, RenewAt: id.RenewAt.Unix()}
		for _, c := range id.Chain {
			stored.Chain = append(stored.Chain, c.Raw)
		}
		for _, c := range roots {
			stored.Roots = append(stored.Roots, c.Raw)
		}
		var raw []byte
		if raw, err = asn1.Marshal(stored); err == nil {
			defer clear(raw)
			err = l.p.Cache.Write(identityName, raw)
		}
	}
	if err != nil {
		l.p.Log.Error("the node's identity cannot be kept on disk; after a restart this node must attest again", "error", err)
	}
}

// loadIdentity takes the identity of an earlier run, if it is still good.
func (l *Link) loadIdentity() {
	if l.p.Cache == nil {
		return
	}
	raw, err := l.p.Cache.Read(identityName)
	if fault.Is(err, fault.NotFound) {
		return
	}
	var id *Identity
	if err == nil {
		defer clear(raw)
		id, err = l.parseIdentity(raw)
	}
	if err != nil {
		l.p.Log.Warn("the cached identity of this node is not used; it must attest again", "reason", err)
		return
	}
	l.identity.Store(id)
}

func (l *Link) parseIdentity(raw []byte) (*Identity, error) {
	var stored storedIdentity
	rest, err := asn1.Unmarshal(raw, &stored)
	if err != nil || len(rest) > 0 || stored.Version != 1 {
		return nil, fault.New(fault.Invalid, "it was not written by this version of the agent")
	}
	key, err := x509.ParsePKCS8PrivateKey(stored.Key)
	if err != nil {
		return nil, fmt.Errorf("its key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.Invalid, "its key cannot sign")
	}
	roots, err := parseCerts(stored.Roots)
	if err != nil {
		return nil, fmt.Errorf("its roots: %w", err)
	}
	id, err := l.newIdentity(signer, stored.Chain, roots)
	if err != nil {
		return nil, err
	}
	if at := time.Unix(stored.RenewAt, 0); at.Before(id.RenewAt) {
		id.RenewAt = at
	}
	for _, name := range l.p.DNSNames {
		if !slices.Contains(id.Chain[0].DNSNames, name) {
			id.RenewAt = l.p.Clock.Now() // configured since
		}
	}
	l.pinned.learn(roots)
	return id, nil
}

func parseCerts(ders [][]byte) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(c.Raw, der) {
			return nil, fault.New(fault.Invalid, "bytes follow a certificate")
		}
		certs = append(certs, c)
	}
	return certs, nil
}
