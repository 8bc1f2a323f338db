package nodetest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Authority is a root and an issuing CA with throw-away keys. It signs what
// it is asked and remembers it.
type Authority struct {
	TrustDomain spiffeid.TrustDomain
	Clock       clock.Clock
	Root        *x509.Certificate
	Issuing     *x509.Certificate

	rootKey, issuingKey *ecdsa.PrivateKey

	mu     sync.Mutex
	ttl    time.Duration
	signed []ca.X509Request
	jwts   []ca.JWTRequest
	fail   error
}

// NewAuthority makes both CAs, dated by the clock.
func NewAuthority(t testing.TB, td spiffeid.TrustDomain, c clock.Clock) *Authority {
	t.Helper()
	a := &Authority{TrustDomain: td, Clock: c, ttl: time.Hour, rootKey: key(t), issuingKey: key(t)}
	a.Root = a.caCert(t, "root", a.rootKey, nil, nil)
	a.Issuing = a.caCert(t, "issuing", a.issuingKey, a.Root, a.rootKey)
	return a
}

func key(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x10
	return new(big.Int).SetBytes(b[:])
}

func (a *Authority) caCert(t testing.TB, name string, k *ecdsa.PrivateKey, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	now := a.Clock.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Legation test"}, CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{a.TrustDomain.ID().URL()},
	}
	if parent == nil {
		parent, parentKey = template, k
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, k.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Bundle is the trust domain's.
func (a *Authority) Bundle(sequence uint64) *nodev1.Bundle {
	return &nodev1.Bundle{TrustDomain: a.TrustDomain.Name(), X509Roots: [][]byte{a.Root.Raw}, Sequence: sequence}
}

// BundleHash is what a token comes with.
func (a *Authority) BundleHash() string {
	sum := sha256.Sum256(a.Root.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// SetTTL changes how long the next certificates live.
func (a *Authority) SetTTL(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ttl = d
}

// Fail makes signing fail while err is not nil.
func (a *Authority) Fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

// Signed is every request that was signed, the server's own apart.
func (a *Authority) Signed() []ca.X509Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]ca.X509Request(nil), a.signed...)
}

// JWTs is every JWT request that was signed.
func (a *Authority) JWTs() []ca.JWTRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]ca.JWTRequest(nil), a.jwts...)
}

// Issue makes a leaf for a key.
func (a *Authority) Issue(id spiffeid.ID, public crypto.PublicKey, ttl time.Duration, usages ...x509.ExtKeyUsage) *x509.Certificate {
	now := a.Clock.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Legation"}},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(ttl), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages, URIs: []*url.URL{id.URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Issuing, public, a.issuingKey)
	if err != nil {
		panic(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return c
}

// SignX509 signs everything.
func (a *Authority) SignX509(_ context.Context, reqs []ca.X509Request) []ca.X509Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]ca.X509Result, len(reqs))
	for i, r := range reqs {
		csr, err := x509.ParseCertificateRequest(r.CSR)
		if a.fail != nil {
			err = a.fail
		}
		if err != nil {
			out[i].Err = err
			continue
		}
		ttl := a.ttl
		switch {
		case r.Profile == ca.ProfileServer:
			ttl = 24 * time.Hour
		case r.TTL > 0:
			ttl = r.TTL
		}
		leaf := a.Issue(r.ID, csr.PublicKey, ttl, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
		if r.Profile != ca.ProfileServer {
			a.signed = append(a.signed, r)
		}
		out[i] = ca.X509Result{Chain: [][]byte{leaf.Raw, a.Issuing.Raw}, Serial: leaf.SerialNumber.Text(16), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	}
	return out
}

// SignJWT answers with a token that says what was asked.
func (a *Authority) SignJWT(_ context.Context, req ca.JWTRequest) (ca.JWTResult, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return ca.JWTResult{}, a.fail
	}
	if len(req.Audience) == 0 {
		return ca.JWTResult{}, fault.New(fault.Invalid, "no audience")
	}
	a.jwts = append(a.jwts, req)
	now := a.Clock.Now()
	return ca.JWTResult{Token: fmt.Sprintf("%s for %v", req.ID, req.Audience), IssuedAt: now, ExpiresAt: now.Add(5 * time.Minute)}, nil
}

// CRL is a list with that number naming these serials, and the root's empty one.
func (a *Authority) CRL(t testing.TB, number int64, revoked ...*big.Int) *nodev1.CRL {
	t.Helper()
	now := a.Clock.Now()
	make := func(issuer *x509.Certificate, k *ecdsa.PrivateKey, number int64, revoked []*big.Int) []byte {
		template := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: issuer.NotAfter}
		for _, s := range revoked {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: now})
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, issuer, k)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	return &nodev1.CRL{Authority: "default", Number: uint64(number),
		Lists: [][]byte{make(a.Issuing, a.issuingKey, number, revoked), make(a.Root, a.rootKey, 1, nil)}}
}

// Heartbeat signs that the CRL number is current.
func (a *Authority) Heartbeat(t testing.TB, number uint64) *nodev1.Heartbeat {
	t.Helper()
	h := &nodev1.Heartbeat{Authority: "default", CrlNumber: number, UnixSeconds: a.Clock.Now().Unix(), Issuer: a.Issuing.Raw}
	text := fmt.Sprintf("legation-crl-heartbeat-v1\n%s\n%d\n%d\n", h.GetAuthority(), h.GetCrlNumber(), h.GetUnixSeconds())
	digest := sha256.Sum256([]byte(text))
	sig, err := ecdsa.SignASN1(rand.Reader, a.issuingKey, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	h.Signature = sig
	return h
}

// NewCSR makes a key and a request; edit may be nil.
func NewCSR(t testing.TB, edit func(*x509.CertificateRequest)) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	k := key(t)
	template := &x509.CertificateRequest{}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, k)
	if err != nil {
		t.Fatal(err)
	}
	return der, k
}

// URI is an ID as certificates carry it.
func URI(id string) []*url.URL { return []*url.URL{spiffeid.RequireFromString(id).URL()} }

// IP parses an address.
func IP(s string) net.IP { return net.ParseIP(s) }
