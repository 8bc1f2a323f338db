package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/ledger"
)

// brokenSigner answers with a signature over something else.
type brokenSigner struct{ crypto.Signer }

func (b brokenSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	other := append([]byte(nil), digest...)
	other[0] ^= 1
	return b.Signer.Sign(r, other, opts)
}

func TestWhatWasSignedIsChecked(t *testing.T) {
	a := newWorld(t).replica()
	a.form.key = brokenSigner{a.form.key}
	r := a.SignX509(context.Background(), []X509Request{requestFor(t, idOf("/w"))})[0]
	if r.Err == nil || !strings.Contains(r.Err.Error(), "does not verify") || r.Chain != nil {
		t.Errorf("a signature that does not verify: %v, want a refusal", r.Err)
	}
	if _, total := a.journal.List(ledger.Filter{}); total != 0 {
		t.Error("a bad certificate was recorded")
	}
}

func TestSignedFieldsAreCompared(t *testing.T) {
	a := newWorld(t).replica()
	cert, r := sign(t, a, requestFor(t, idOf("/w")))
	good := leaf{
		profile: ProfileWorkload, serial: cert.SerialNumber, notBefore: r.NotBefore, notAfter: r.NotAfter, uri: "spiffe://example.org/w",
		ski: cert.SubjectKeyId, spki: cert.RawSubjectPublicKeyInfo,
	}
	if err := checkSigned(cert, &good, cert.PublicKey); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(l *leaf){
		"serial":    func(l *leaf) { l.serial = newSerial() },
		"identity":  func(l *leaf) { l.uri += "x" },
		"DNS names": func(l *leaf) { l.dns = []string{"web"} },
		"validity":  func(l *leaf) { l.notAfter = l.notAfter.Add(time.Second) },
		"key":       func(l *leaf) { l.spki = l.spki[1:] },
		"usage":     func(l *leaf) { l.profile = ProfileOperator },
	} {
		other := good
		change(&other)
		if checkSigned(cert, &other, cert.PublicKey) == nil {
			t.Errorf("another %s was not noticed", what)
		}
	}
	if checkSigned(cert, &good, newKey(t).Public()) == nil {
		t.Error("another key was not noticed")
	}
}

func TestLintNamesEachBrokenRule(t *testing.T) {
	a := newWorld(t).replica()
	id := idOf("/w")
	key := newKey(t)
	make := func(change func(c *x509.Certificate)) *x509.Certificate {
		t.Helper()
		c := &x509.Certificate{
			SerialNumber: newSerial(), Subject: pkix.Name{Organization: []string{"Legation"}},
			NotBefore: time.Now().Add(-minBackdate), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			BasicConstraintsValid: true, SubjectKeyId: []byte{1, 2, 3}, URIs: []*url.URL{id.URL()},
		}
		change(c)
		der, err := x509.CreateCertificate(rand.Reader, c, a.issuing, key.Public(), a.issuingKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	if err := lint(make(func(*x509.Certificate) {}), a.issuing, id); err != nil {
		t.Fatalf("a good certificate: %v", err)
	}
	for want, change := range map[string]func(c *x509.Certificate){
		"a leaf is a CA":                func(c *x509.Certificate) { c.IsCA = true },
		"not exactly one URI name":      func(c *x509.Certificate) { c.URIs = append(c.URIs, idOf("/x").URL()) },
		"lacks digitalSignature":        func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment },
		"may sign certificates":         func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"lacks clientAuth":              func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"extended key usage is missing": func(c *x509.Certificate) { c.ExtKeyUsage = nil },
		"an e-mail name":                func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} },
		"beyond the issuer's":           func(c *x509.Certificate) { c.NotAfter = a.issuing.NotAfter.Add(time.Hour) },
		"fewer than 64 bits":            func(c *x509.Certificate) { c.SerialNumber.SetInt64(7) },
		"no subject key id":             func(c *x509.Certificate) { c.SubjectKeyId = nil },
		"wrong criticality":             func(c *x509.Certificate) { c.Subject = pkix.Name{} },
		"unexpected extension 1.2.3": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: []byte{5, 0}}}
		},
		"extension 2.5.29.19 is missing": func(c *x509.Certificate) { c.BasicConstraintsValid = false },
		"DNS name":                       func(c *x509.Certificate) { c.DNSNames = []string{"*.example"} },
	} {
		if err := lint(make(change), a.issuing, id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want a finding %q, got %v", want, err)
		}
	}
}

func TestLeavesEndAfter2049AsGeneralizedTime(t *testing.T) {
	w := newWorld(t)
	w.life = Lifetimes{Root: 40 * year, Issuing: 39 * year, X509Default: 30 * year, X509Max: 30 * year}
	cert, _ := sign(t, w.replica(), requestFor(t, idOf("/w")))
	if cert.NotAfter.Year() < 2050 {
		t.Errorf("ends %s", cert.NotAfter)
	}
}
