package chaincheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	now      = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	domain   = spiffeid.RequireTrustDomainFromString("example.org")
	other    = spiffeid.RequireTrustDomainFromString("other.example")
	workload = "spiffe://example.org/ns/retail/sa/web"
)

// authority is a CA of a test.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var lastSerial int64 = 1000

func serial() *big.Int {
	lastSerial++
	return big.NewInt(lastSerial)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ca makes a CA: a root without a parent. change may bend the template.
func ca(t testing.TB, name string, parent *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	return caWithKey(t, name, parent, newKey(t), change)
}

func caWithKey(t testing.TB, name string, parent *authority, key crypto.Signer, change func(*x509.Certificate)) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(240 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	return &authority{sign(t, template, parent, key), key}
}

// leaf makes a workload's certificate under a CA.
func (a *authority) leaf(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	return a.leafWithKey(t, newKey(t), change)
}

func (a *authority) leafWithKey(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "web"},
		NotBefore: now.Add(-10 * time.Minute), NotAfter: now.Add(24 * time.Hour),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  []*url.URL{uri(t, workload)},
	}
	if change != nil {
		change(template)
	}
	return sign(t, template, a, key)
}

func sign(t testing.TB, template *x509.Certificate, parent *authority, key crypto.Signer) *x509.Certificate {
	t.Helper()
	parentCert, signer := template, key
	if parent != nil {
		parentCert, signer = parent.cert, parent.key
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

func uri(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// crl signs a list; change may bend the template.
func (a *authority) crl(t testing.TB, number int64, change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	for _, cert := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: now.Add(-time.Minute), ReasonCode: 1})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func crls(t testing.TB, ders ...[]byte) *CRLSet {
	t.Helper()
	set, err := NewCRLSet(ders)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// world is an ordinary trust domain: root, issuing CA, leaf, both lists.
type world struct {
	root, issuing *authority
	leaf          *x509.Certificate
	params        Params
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{root: ca(t, "root", nil, nil)}
	w.issuing = ca(t, "issuing", w.root, nil)
	w.leaf = w.issuing.leaf(t, nil)
	w.params = Params{
		Chain: []*x509.Certificate{w.leaf, w.issuing.cert},
		Roots: Roots{domain: {w.root.cert}},
		CRLs:  crls(t, w.root.crl(t, 1, nil), w.issuing.crl(t, 1, nil)),
		Usage: Client, Now: now,
	}
	return w
}

// present replaces the leaf.
func (w *world) present(leaf *x509.Certificate) {
	w.leaf, w.params.Chain[0] = leaf, leaf
}

// reissue bends the issuing CA and issues the leaf under it.
func (w *world) reissue(t testing.TB, change func(*x509.Certificate)) {
	t.Helper()
	w.issuing = ca(t, "issuing", w.root, change)
	w.leaf = w.issuing.leaf(t, nil)
	w.params.Chain = []*x509.Certificate{w.leaf, w.issuing.cert}
	lists := [][]byte{w.root.crl(t, 1, nil)}
	if w.issuing.cert.KeyUsage&x509.KeyUsageCRLSign != 0 {
		lists = append(lists, w.issuing.crl(t, 1, nil))
	}
	w.params.CRLs = crls(t, lists...)
}

// raw replaces or adds an extension.
func raw(id int, critical bool, value []byte) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Critical: critical, Value: value})
	}
}

// tlv is one DER element of less than 64 KiB.
func tlv(tag byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	switch n := len(body); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, body...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, body...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, body...)
	}
}

// general is a GeneralName with primitive contents; san is the extension.
func general(kind nameKind, value string) []byte { return tlv(0x80|byte(kind), []byte(value)) }

func san(names ...[]byte) func(*x509.Certificate) { return raw(extSAN, false, tlv(0x30, names...)) }

// row is one requirement: a world bent in one way, and the verdict.
type row struct {
	name string
	bend func(t *testing.T, w *world)
	want Cause // empty: accepted
}

func check(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t)
			if r.bend != nil {
				r.bend(t, w)
			}
			wantCause(t, w.params, r.want)
		})
	}
}

func wantCause(t *testing.T, p Params, want Cause) *Result {
	t.Helper()
	result, err := Verify(p)
	holdsCause(t, result, err, want)
	return result
}

func holdsCause(t *testing.T, result *Result, err error, want Cause) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		return
	}
	var refusal *Error
	if !errors.As(err, &refusal) {
		t.Fatalf("want %s, accepted as %v %s", want, result.ID, result.Host)
	}
	if refusal.Cause != want || !errors.Is(err, &Error{Cause: want}) {
		t.Fatalf("want %s, got %v", want, err)
	}
	if result != nil {
		t.Fatal("a refusal came with a result")
	}
}

// bendLeaf is the most common bend.
func bendLeaf(change func(*x509.Certificate)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) { w.present(w.issuing.leaf(t, change)) }
}

func bendCA(change func(*x509.Certificate)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) { w.reissue(t, change) }
}

// rawLeaf signs a leaf that x509.ParseCertificate may refuse.
func rawLeaf(t testing.TB, issuer *authority, change func(*x509.Certificate)) []byte {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		Subject: pkix.Name{CommonName: "raw"},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
