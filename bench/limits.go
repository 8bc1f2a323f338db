package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"runtime"
	"time"
)

// material is one key with what is made of it again and again.
type material struct {
	key    *ecdsa.PrivateKey
	csr    []byte
	digest [32]byte
	sig    []byte
	parent *x509.Certificate
	leaf   *x509.Certificate
}

func newMaterial() (*material, error) {
	m := &material{digest: sha256.Sum256([]byte("bench"))}
	var err error
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if m.csr, err = newCSR("spiffe://bench.test/ns/bench/sa/any"); err != nil {
		return nil, err
	}
	if m.sig, err = ecdsa.SignASN1(rand.Reader, m.key, m.digest[:]); err != nil {
		return nil, err
	}
	m.parent = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: make([]byte, 20)}
	m.leaf = &x509.Certificate{SerialNumber: new(big.Int).SetBytes(m.digest[:15]), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		SubjectKeyId: make([]byte, 20), BasicConstraintsValid: true, URIs: []*url.URL{{Scheme: "spiffe", Host: "bench.test", Path: "/ns/bench/sa/any"}}}
	return m, nil
}

// newCSR makes a request with a new P-256 key.
func newCSR(id string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
}

func (m *material) sign() error {
	_, err := ecdsa.SignASN1(rand.Reader, m.key, m.digest[:])
	return err
}

func (m *material) verify() error {
	if !ecdsa.VerifyASN1(&m.key.PublicKey, m.digest[:], m.sig) {
		return fmt.Errorf("own signature refused")
	}
	return nil
}

func (m *material) readCSR() error {
	csr, err := x509.ParseCertificateRequest(m.csr)
	if err != nil {
		return err
	}
	return csr.CheckSignature()
}

func (m *material) certificate() error {
	_, err := x509.CreateCertificate(rand.Reader, m.leaf, m.parent, m.key.Public(), m.key)
	return err
}

// floor is what no issuance can leave out: the CSR's signature verified, one
// signature made, that signature checked.
func (m *material) floor() error {
	if err := m.verify(); err != nil {
		return err
	}
	digest := sha256.Sum256(m.csr)
	sig, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(&m.key.PublicKey, digest[:], sig) {
		return fmt.Errorf("own signature refused")
	}
	return nil
}

// perCPUSecond runs f on every core and returns calls per CPU second.
func perCPUSecond(d time.Duration, f func() error) (float64, error) {
	cpu := ownCPU()
	n, err := crowd(runtime.GOMAXPROCS(0), d, func(int) error { return f() })
	return float64(n) / (ownCPU() - cpu).Seconds(), err
}

func limits(_ context.Context, r *run) ([]Row, error) {
	m, err := newMaterial()
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, l := range []struct {
		name string
		f    func() error
	}{
		{"limit: P-256 signatures", m.sign},
		{"limit: P-256 verifications", m.verify},
		{"limit: CSR parsed and verified", m.readCSR},
		{"limit: x509.CreateCertificate", m.certificate},
		{"limit: issuance floor (verify CSR, sign, check)", m.floor},
	} {
		rate, err := perCPUSecond(of(r, time.Second, 200*time.Millisecond), l.f)
		if err != nil {
			return rows, err
		}
		rows = append(rows, fact(l.name, rate, "/s per core"))
	}
	return rows, nil
}
