// Package pkitest makes trust domains for tests: a root, an issuing CA,
// certificates, CRLs and denials, as identity.Snapshots.
package pkitest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
)

// Authority is a CA.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// Domain is a trust domain whose state the test changes. Its methods are safe
// for concurrent use.
type Domain struct {
	TrustDomain spiffeid.TrustDomain
	t           testing.TB
	now         func() time.Time

	mu      sync.Mutex
	root    *Authority
	issuing *Authority
	all     []*Authority // each publishes a CRL
	roots   []*x509.Certificate
	foreign chaincheck.Roots
	revoked []*big.Int
	denials []chaincheck.Denial
	number  int64
	trust   *chaincheck.Trust
	noCRLs  bool
	lists   [][]byte
	sources []*identity.Memory
}

// New returns a trust domain whose clock is now; nil is time.Now.
func New(t testing.TB, name string, now func() time.Time) *Domain {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	d := &Domain{TrustDomain: spiffeid.RequireTrustDomainFromString(name), t: t, now: now, foreign: chaincheck.Roots{}}
	d.root = d.authority("root of "+name, nil)
	d.issuing = d.authority("issuing of "+name, d.root)
	d.roots = []*x509.Certificate{d.root.Cert}
	d.publishLocked()
	return d
}

// Example is New for Example functions, which have no testing.TB; it panics
// where a test would fail.
func Example(name string) *Domain { return New(panics{}, name, nil) }

type panics struct{ testing.TB }

func (panics) Helper()           {}
func (panics) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// ID is the domain's SPIFFE ID with a path.
func (d *Domain) ID(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(d.TrustDomain, path)
}

var serials struct {
	sync.Mutex
	last int64
}

func serial() *big.Int {
	serials.Lock()
	defer serials.Unlock()
	serials.last++
	return big.NewInt(1<<40 + serials.last)
}

func (d *Domain) authority(name string, parent *Authority) *Authority {
	key := NewKey(d.t)
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: d.now().Add(-240 * time.Hour), NotAfter: d.now().Add(2400 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a := &Authority{sign(d.t, template, parent, key), key}
	d.all = append(d.all, a)
	return a
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template *x509.Certificate, parent *Authority, key crypto.Signer) *x509.Certificate {
	parentCert, signer := template, key
	if parent != nil {
		parentCert, signer = parent.Cert, parent.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parentCert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Issue makes an SVID for a path. change may bend the template; nil leaves it.
func (d *Domain) Issue(path string, change func(*x509.Certificate)) *tls.Certificate {
	d.t.Helper()
	id, err := url.Parse(d.ID(path).String())
	if err != nil {
		d.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "workload"}, NotBefore: d.now().Add(-10 * time.Minute), NotAfter: d.now().Add(24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	key := NewKey(d.t)
	d.mu.Lock()
	issuing := d.issuing
	d.mu.Unlock()
	leaf := sign(d.t, template, issuing, key)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, issuing.Cert.Raw}, PrivateKey: key, Leaf: leaf}
}

// Snapshot is a new SVID for a path with the current trust.
func (d *Domain) Snapshot(path string) *identity.Snapshot { return d.With(d.Issue(path, nil)) }

// With is a certificate with the current trust.
func (d *Domain) With(cert *tls.Certificate) *identity.Snapshot {
	s := &identity.Snapshot{Certificate: cert, Trust: d.Trust()}
	if cert != nil && len(cert.Leaf.URIs) == 1 {
		s.ID, _ = spiffeid.FromURI(cert.Leaf.URIs[0])
	}
	return s
}

// Source is a source with a new SVID for a path that follows the domain's
// trust.
func (d *Domain) Source(path string) *identity.Memory { return d.SourceOf(d.Issue(path, nil)) }

// SourceOf is Source with a certificate.
func (d *Domain) SourceOf(cert *tls.Certificate) *identity.Memory {
	m := identity.NewMemory(d.With(cert))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sources = append(d.sources, m)
	return m
}

// Trust is what members believe now.
func (d *Domain) Trust() *chaincheck.Trust {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trust
}

// CRLs are the lists (DER) that Trust has.
func (d *Domain) CRLs() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lists
}

// Root is the root that issues now.
func (d *Domain) Root() *Authority {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.root
}

// Issuing is the issuing CA.
func (d *Domain) Issuing() *Authority {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.issuing
}

// Revoke puts a certificate on the issuing CA's CRL.
func (d *Domain) Revoke(cert *x509.Certificate) {
	d.change(func() { d.revoked = append(d.revoked, cert.SerialNumber) })
}

// Deny adds a denial; Allow takes all back.
func (d *Domain) Deny(denial chaincheck.Denial) {
	d.change(func() { d.denials = append(d.denials, denial) })
}

// Allow takes all denials back.
func (d *Domain) Allow() { d.change(func() { d.denials = nil }) }

// PublishNoCRLs makes the domain one without CRLs, as SPIRE's are.
func (d *Domain) PublishNoCRLs() { d.change(func() { d.noCRLs = true }) }

// Federate makes members believe other's roots for other's domain.
func (d *Domain) Federate(other *Domain) {
	roots := other.Trust().Roots[other.TrustDomain]
	d.change(func() { d.foreign[other.TrustDomain] = roots })
}

// RotateRoot makes a new root and issuing CA. When retire is set the old root
// is believed no longer.
func (d *Domain) RotateRoot(retire bool) {
	d.change(func() {
		d.root = d.authority("root of "+d.TrustDomain.Name(), nil)
		d.issuing = d.authority("issuing of "+d.TrustDomain.Name(), d.root)
		d.roots = append(d.roots, d.root.Cert)
		if retire {
			d.roots = d.roots[len(d.roots)-1:]
		}
	})
}

// RetireOldRoots leaves only the newest root.
func (d *Domain) RetireOldRoots() {
	d.change(func() { d.roots = d.roots[len(d.roots)-1:] })
}

func (d *Domain) change(f func()) {
	d.mu.Lock()
	f()
	d.publishLocked()
	trust, sources := d.trust, d.sources
	d.mu.Unlock()
	for _, m := range sources {
		if s, _, err := m.Current(); err == nil {
			next := *s
			next.Trust = trust
			m.Set(&next)
		}
	}
}

func (d *Domain) publishLocked() {
	d.number++
	roots := chaincheck.Roots{d.TrustDomain: append([]*x509.Certificate(nil), d.roots...)}
	for domain, certs := range d.foreign {
		roots[domain] = certs
	}
	d.trust = &chaincheck.Trust{Roots: roots}
	d.lists = nil
	if !d.noCRLs {
		var lists [][]byte
		for _, a := range d.all {
			lists = append(lists, d.crl(a, d.revoked))
		}
		set, err := chaincheck.NewCRLSet(lists)
		if err != nil {
			d.t.Fatal(err)
		}
		d.trust.CRLs, d.lists = set, lists
	}
	denied, err := chaincheck.NewDenySet(d.denials)
	if err != nil {
		d.t.Fatal(err)
	}
	d.trust.Denied = denied
}

func (d *Domain) crl(a *Authority, revoked []*big.Int) []byte {
	template := &x509.RevocationList{Number: big.NewInt(d.number), ThisUpdate: d.now().Add(-time.Minute), NextUpdate: d.now().Add(240 * time.Hour)}
	for _, s := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: d.now().Add(-time.Minute), ReasonCode: 1})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.Cert, a.Key)
	if err != nil {
		d.t.Fatal(err)
	}
	return der
}
