package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pki is a root that signs for the Envoys of one measurement.
type pki struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	crl  []byte
}

func newPKI() (*pki, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	p := &pki{key: key}
	if p.root, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	p.crl, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: t.NotBefore, NextUpdate: t.NotAfter}, p.root, key)
	return p, err
}

// update is what an agent would hand the proxy of that identity.
func (p *pki) update(name string) (*svid.Update, error) {
	id, err := spiffeid.FromString(idOf(name))
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: p.root.NotBefore, NotAfter: p.root.NotAfter, URIs: []*url.URL{id.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, t, p.root, key.Public(), p.key)
	if err != nil {
		return nil, err
	}
	td := id.TrustDomain().Name()
	return &svid.Update{
		SVIDs: []*svid.SVID{{ID: id, Entry: &nodev1.Entry{Name: "bench/" + name, Namespace: "bench", SpiffeId: id.String()}, Chain: [][]byte{der}, Key: key,
			KeyPKCS8: pkcs8, Serial: fmt.Sprintf("%x", t.SerialNumber), NotBefore: t.NotBefore, NotAfter: t.NotAfter}},
		Trust: &svid.Trust{TrustDomain: td, Roots: map[string][][]byte{td: {p.root.Raw}}, CRLs: map[string][][]byte{td: {p.crl}}},
	}, nil
}

func asPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
