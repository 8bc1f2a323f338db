// Package envoytest has what tests of a real Envoy share: a throw-away CA,
// the control stream an agent serves (delta ADS and access logs) and the
// path of the pinned binary. For tests only.
package envoytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// CA signs test certificates and one CRL.
type CA struct {
	t    testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	crl  int64
}

// NewCA makes a self-signed CA with a name.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, Cert: cert, key: key}
}

func serial(t testing.TB) *big.Int {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

// PEM is the CA's certificate.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert.Raw})
}

// Leaf is a certificate with its key.
type Leaf struct {
	Cert *x509.Certificate
	TLS  tls.Certificate
	// CertPEM and KeyPEM are for Envoy.
	CertPEM, KeyPEM []byte
}

// Serial in lower-case hex, as Envoy prints it.
func (l *Leaf) Serial() string { return fmt.Sprintf("%x", l.Cert.SerialNumber) }

// Issue signs an SVID valid from an hour ago to an hour ahead.
func (ca *CA) Issue(id string) *Leaf {
	return ca.IssueValid(id, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// IssueValid signs an SVID valid between two moments.
func (ca *CA) IssueValid(id string, from, to time.Time) *Leaf {
	ca.t.Helper()
	return ca.issue(id, from, to, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

// IssueFor signs what Issue does, for these purposes alone.
func (ca *CA) IssueFor(id string, purposes ...x509.ExtKeyUsage) *Leaf {
	ca.t.Helper()
	return ca.issue(id, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), purposes...)
}

func (ca *CA) issue(id string, from, to time.Time, purposes ...x509.ExtKeyUsage) *Leaf {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		ca.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(ca.t), NotBefore: from, NotAfter: to, URIs: []*url.URL{uri},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: purposes,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return &Leaf{
		Cert:    cert,
		TLS:     tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert},
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
}

// CRL signs a list of the revoked leaves, PEM.
func (ca *CA) CRL(revoked ...*Leaf) []byte {
	ca.t.Helper()
	ca.crl++
	list := &x509.RevocationList{
		Number: big.NewInt(ca.crl), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
	}
	for _, l := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: l.Cert.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// ClientTLS verifies the server's chain only (Envoy checks SANs; a Go client
// would check a host name) and presents leaf, which may be nil.
func (ca *CA) ClientTLS(leaf *Leaf) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}
	if leaf != nil {
		c.Certificates = []tls.Certificate{leaf.TLS}
	}
	return c
}
