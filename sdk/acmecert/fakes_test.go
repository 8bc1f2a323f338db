package acmecert

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("ACMECERT_HOLD_LOCK_IN") != "" {
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m)
}

type countingStorage struct {
	Storage
	n atomic.Int64
}

func (c *countingStorage) Load(ctx context.Context, key string) ([]byte, error) {
	c.n.Add(1)
	return c.Storage.Load(ctx, key)
}

func (c *countingStorage) loads() int { return int(c.n.Load()) }

type noProvider struct{}

func (noProvider) AppendRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, errors.New("no zone")
}

func (noProvider) DeleteRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, errors.New("no zone")
}

// testCA signs what a test asks for.
type testCA struct {
	t           testing.TB
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	serial      int64
	last        *x509.Certificate // that was signed
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{t: t, key: newKey(t), serial: 1}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}
	template.Subject.CommonName = "test CA"
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign makes a leaf; change edits it before it is signed.
func (ca *testCA) sign(key crypto.PublicKey, change func(*x509.Certificate), names ...string) *x509.Certificate {
	ca.t.Helper()
	ca.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), DNSNames: names, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	ca.last = leaf
	return leaf
}

func selfSigned(t testing.TB, name string, life time.Duration) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	leaf := newTestCA(t).sign(key.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) }, name)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}
