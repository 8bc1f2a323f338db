package sds

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const td = "example.org"

// pki is a root, an issuing CA, and their CRLs.
type pki struct {
	t            testing.TB
	root, issuer authority
	serial       int64
	number       int64
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newPKI(t testing.TB) *pki {
	p := &pki{t: t, serial: 100, number: 1}
	p.root = p.ca("root", nil)
	p.issuer = p.ca("issuing", &p.root)
	return p
}

func (p *pki) key() crypto.Signer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	return k
}

func (p *pki) sign(template *x509.Certificate, key crypto.Signer, by *authority) *x509.Certificate {
	p.t.Helper()
	p.serial++
	template.SerialNumber = big.NewInt(p.serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	template.BasicConstraintsValid = true
	if by == nil {
		by = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

func (p *pki) ca(name string, by *authority) authority {
	key := p.key()
	return authority{p.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, key, by), key}
}

func (p *pki) svid(path string, names ...string) *svid.SVID {
	p.t.Helper()
	id := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(td), path)
	key := p.key()
	uri, _ := url.Parse(id.String())
	cert := p.sign(&x509.Certificate{URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, key, &p.issuer)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	return &svid.SVID{ID: id, Entry: &nodev1.Entry{SdsNames: names}, Chain: [][]byte{cert.Raw, p.issuer.cert.Raw},
		Key: key, KeyPKCS8: pkcs8, Serial: cert.SerialNumber.Text(16), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
}

// crl is the authority's, current unless it ended before now.
func (p *pki) crl(by authority, next time.Duration, revoked ...*svid.SVID) []byte {
	p.t.Helper()
	p.number++
	l := &x509.RevocationList{Number: big.NewInt(p.number), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(next)}
	for _, s := range revoked {
		n, _ := new(big.Int).SetString(s.Serial, 16)
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

// trust has the root and a current CRL of each CA.
func (p *pki) trust(revoked ...*svid.SVID) *svid.Trust {
	return p.trustWith(p.crl(p.root, time.Hour), p.crl(p.issuer, time.Hour, revoked...))
}

func (p *pki) trustWith(crls ...[]byte) *svid.Trust {
	return &svid.Trust{TrustDomain: td, Roots: map[string][][]byte{td: {p.root.cert.Raw}}, CRLs: map[string][][]byte{td: crls}}
}

func (p *pki) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.root.cert)
	return pool
}

func pair(s *svid.SVID) tls.Certificate {
	return tls.Certificate{Certificate: s.Chain, PrivateKey: s.Key}
}

func pemBlocks(t testing.TB, kind string, b []byte) (out [][]byte) {
	t.Helper()
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil || block.Type != kind {
			t.Fatalf("not a PEM %s: %q", kind, b)
		}
		out = append(out, block.Bytes)
	}
	return out
}
