package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/fault"
)

// A01: the authority's second lock: no entry can mint the system's own
// identities or another domain's, and a request for one id never yields
// another.
func TestA01NoIdentityButTheAuthorisedOne(t *testing.T) {
	a := newWorld(t).replica()
	for _, tc := range []struct {
		name    string
		profile Profile
		id      string
		node    string
		csrFor  string
	}{
		{"a workload asks to be the server", ProfileWorkload, "spiffe://example.org/legation/server", "node-1", ""},
		{"a workload asks to be an agent", ProfileWorkload, "spiffe://example.org/legation/agent/node-1", "node-1", ""},
		{"an operator asks to be an agent", ProfileOperator, "spiffe://example.org/legation/agent/node-1", "", ""},
		{"an agent asks to be another", ProfileAgent, "spiffe://example.org/legation/agent/node-2", "node-1", ""},
		{"an agent asks to be the server", ProfileAgent, "spiffe://example.org/legation/server", "node-1", ""},
		{"an agent asks to be a workload", ProfileAgent, "spiffe://example.org/w", "node-1", ""},
		{"a server asks to be an agent", ProfileServer, "spiffe://example.org/legation/agent/node-1", "", ""},
		{"a server asks to be a workload", ProfileServer, "spiffe://example.org/w", "", ""},
		{"another trust domain", ProfileWorkload, "spiffe://other.org/w", "node-1", ""},
		{"the trust domain itself", ProfileWorkload, "spiffe://example.org", "node-1", ""},
		{"a request for another id", ProfileWorkload, "spiffe://example.org/w", "node-1", "spiffe://example.org/admin"},
		{"a request that differs in an escape", ProfileWorkload, "spiffe://example.org/w", "node-1", "spiffe://example.org/%77"},
		{"a request that differs in a slash", ProfileWorkload, "spiffe://example.org/w", "node-1", "spiffe://example.org/w/"},
		{"a request that differs in case", ProfileWorkload, "spiffe://example.org/w", "node-1", "SPIFFE://example.org/w"},
		{"a request with a query", ProfileWorkload, "spiffe://example.org/w", "node-1", "spiffe://example.org/w?x=1"},
	} {
		csr := newCSR(t, newKey(t))
		if tc.csrFor != "" {
			csr = rawURICSR(t, tc.csrFor)
		}
		r := a.SignX509(context.Background(), []X509Request{{Profile: tc.profile, CSR: csr, ID: spiffeid.RequireFromString(tc.id), Node: tc.node}})[0]
		if !fault.Is(r.Err, fault.Denied) && !fault.Is(r.Err, fault.Invalid) || r.Chain != nil {
			t.Errorf("%s: %v, want a refusal", tc.name, r.Err)
		}
	}
	for _, bad := range []X509Request{{}, {Profile: "root", ID: idOf("/w")}, {Profile: ProfileWorkload}} {
		bad.CSR = newCSR(t, newKey(t))
		if err := a.SignX509(context.Background(), []X509Request{bad})[0].Err; !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want invalid", bad, err)
		}
	}
}

// rawURICSR puts URI names into a request byte for byte.
func rawURICSR(t testing.TB, uris ...string) []byte {
	t.Helper()
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	value, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Value: value}},
	}, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A15: one bad item of a batch is refused; the others are not touched, and no
// result belongs to another's request.
func TestA15OneBadItemRefusesItselfAlone(t *testing.T) {
	a := newWorld(t).replica()
	if _, err := a.Revoke(context.Background(), RevokeRequest{ID: idOf("/blocked")}); err != nil {
		t.Fatal(err)
	}
	bad := []X509Request{
		{Profile: ProfileWorkload, ID: idOf("/w"), CSR: []byte("no request")},
		{Profile: ProfileWorkload, ID: idOf("/w")},
		{Profile: ProfileWorkload, ID: idOf("/legation/server"), CSR: newCSR(t, newKey(t))},
		{Profile: ProfileWorkload, ID: idOf("/w"), CSR: newCSR(t, newKey(t), "spiffe://example.org/other")},
		requestFor(t, idOf("/blocked")),
	}
	const n = 40
	for kind, badItem := range bad {
		k := kind * (n - 1) / (len(bad) - 1) // first, last, and between
		reqs := make([]X509Request, n)
		keys := make([]*ecdsa.PrivateKey, n)
		for i := range reqs {
			keys[i] = newKey(t)
			id := idOf(fmt.Sprintf("/w%d", i))
			reqs[i] = X509Request{Profile: ProfileWorkload, ID: id, CSR: newCSR(t, keys[i], id.String())}
		}
		reqs[k] = badItem
		for i, r := range a.SignX509(context.Background(), reqs) {
			if i == k {
				if r.Err == nil || r.Chain != nil || r.Serial != "" {
					t.Errorf("bad item %d: %+v, want a refusal and nothing else", k, r)
				}
				continue
			}
			if r.Err != nil {
				t.Errorf("good item %d beside bad %d: %v", i, k, r.Err)
				continue
			}
			cert, err := x509.ParseCertificate(r.Chain[0])
			if err != nil || cert.URIs[0].String() != reqs[i].ID.String() || !keys[i].PublicKey.Equal(cert.PublicKey) {
				t.Errorf("item %d got another's certificate: %v, %v", i, cert.URIs, err)
			}
		}
	}
}

// A16: each of N names is checked, not one of them N times.
func TestA16EachNameIsCheckedForEveryPlace(t *testing.T) {
	a := newWorld(t).replica()
	sign := func(dns []string, ips []netip.Addr) error {
		return a.SignX509(context.Background(), []X509Request{{Profile: ProfileWorkload, ID: idOf("/w"), CSR: newCSR(t, newKey(t)), DNSNames: dns, IPs: ips}})[0].Err
	}
	const n = 8
	badDNS := []string{"*.example.org", "a..b", "", "-a.example", "a-.example", "UPPER.example", "a.example.", "10.0.0.1", "under_score.example", "sp ace", "nul\x00.example", "ünicode.example", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "example"}
	badIPs := []netip.Addr{{}, netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:0.0.0.0")}
	for k := range n {
		dns, ips := make([]string, n), make([]netip.Addr, n)
		for i := range n {
			dns[i] = fmt.Sprintf("w%d.example", i)
			ips[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		}
		if err := sign(dns, ips); err != nil {
			t.Fatal(err)
		}
		for _, bad := range badDNS {
			with := append([]string(nil), dns...)
			with[k] = bad
			if err := sign(with, nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("DNS name %d", k+1)) {
				t.Errorf("name %d is %q: %v, want invalid, naming the place", k, bad, err)
			}
		}
		for _, bad := range badIPs {
			with := append([]netip.Addr(nil), ips...)
			with[k] = bad
			if err := sign(nil, with); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("address %d", k+1)) {
				t.Errorf("address %d is %v: %v, want invalid, naming the place", k, bad, err)
			}
		}
	}
	if err := sign(make([]string, maxNames+1), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("too many names: %v, want invalid", err)
	}
}

// A18: what a request may not decide is not decided by it.
func TestA18RequestGames(t *testing.T) {
	a := newWorld(t).replica()
	id := idOf("/w")
	ask := func(csr []byte) X509Result {
		return a.SignX509(context.Background(), []X509Request{{Profile: ProfileWorkload, ID: id, CSR: csr}})[0]
	}
	made := func(key crypto.Signer, template x509.CertificateRequest) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("its extensions are ignored", func(t *testing.T) {
		caTrue, _ := asn1.Marshal(struct{ CA bool }{true})
		r := ask(made(newKey(t), x509.CertificateRequest{
			Subject:        pkix.Name{CommonName: "admin", Organization: []string{"evil"}},
			DNSNames:       []string{"admin.example.org"},
			EmailAddresses: []string{"root@example.org"},
			URIs:           []*url.URL{id.URL()},
			ExtraExtensions: []pkix.Extension{
				{Id: oidBasicConstraints, Critical: true, Value: caTrue},
				{Id: oidKeyUsage, Critical: true, Value: []byte{3, 2, 1, 6}},
			},
		}))
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		cert, err := x509.ParseCertificate(r.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		issuing, _ := a.Chain()
		if err := lint(cert, issuing, id); err != nil {
			t.Error(err)
		}
		if cert.IsCA || len(cert.DNSNames)+len(cert.EmailAddresses) != 0 || cert.Subject.CommonName != "" || cert.Subject.Organization[0] != "Legation" {
			t.Errorf("the request decided: CA %v, DNS %v, subject %s", cert.IsCA, cert.DNSNames, cert.Subject)
		}
	})
	t.Run("good keys are taken", func(t *testing.T) {
		for _, key := range []crypto.Signer{newKey(t), p384, rsaKey(2048), rsaKey(3072)} {
			if r := ask(made(key, x509.CertificateRequest{})); r.Err != nil {
				t.Errorf("%T: %v", key, r.Err)
			}
		}
	})
	t.Run("weak, huge and odd keys are refused", func(t *testing.T) {
		t.Setenv("GODEBUG", "rsa1024min=0")
		for name, key := range map[string]crypto.Signer{"RSA 1024": rsaKey(1024), "P-224": p224, "P-521": p521, "Ed25519": ed} {
			if r := ask(made(key, x509.CertificateRequest{})); !fault.Is(r.Err, fault.Invalid) {
				t.Errorf("%s: %v, want invalid", name, r.Err)
			}
		}
	})
	t.Run("an authority's own key is refused", func(t *testing.T) {
		for _, key := range []crypto.Signer{a.issuingKey, a.jwtKey} {
			if r := ask(made(key, x509.CertificateRequest{})); !fault.Is(r.Err, fault.Denied) {
				t.Errorf("%v, want denied", r.Err)
			}
		}
	})
	t.Run("a request without proof of possession is refused, wherever it was changed", func(t *testing.T) {
		good := newCSR(t, newKey(t), id.String())
		for i := range good {
			bad := append([]byte(nil), good...)
			bad[i] ^= 1
			if r := ask(bad); r.Err == nil {
				t.Errorf("byte %d changed: signed", i)
			}
			if r := ask(good[:i]); !fault.Is(r.Err, fault.Invalid) {
				t.Errorf("cut to %d bytes: %v, want invalid", i, r.Err)
			}
		}
		if r := ask(append(append([]byte(nil), good...), 0)); !fault.Is(r.Err, fault.Invalid) {
			t.Errorf("a byte more: %v, want invalid", r.Err)
		}
		if r := ask(make([]byte, maxCSR+1)); !fault.Is(r.Err, fault.Invalid) {
			t.Errorf("oversized: %v, want invalid", r.Err)
		}
	})
	t.Run("two URI names are refused", func(t *testing.T) {
		if r := ask(rawURICSR(t, id.String(), id.String())); r.Err == nil {
			t.Error("signed")
		}
	})
}

// A33: only CA certificates are anchors in what we publish, and a leaf is none.
func TestA33TheBundleHoldsRootsOnly(t *testing.T) {
	a := newWorld(t).replica()
	state, _ := a.State()
	issuing, root := a.Chain()
	if len(state.Bundle.X509Roots) != 1 || string(state.Bundle.X509Roots[0]) != string(root.Raw) {
		t.Fatal("the bundle is not the root alone")
	}
	if !root.IsCA || !issuing.IsCA || root.CheckSignatureFrom(root) != nil || !issuing.MaxPathLenZero {
		t.Error("root and issuing CA are not what they should be")
	}
	// A workload's key cannot sign for others.
	key := newKey(t)
	leaf, _ := sign(t, a, X509Request{Profile: ProfileWorkload, ID: idOf("/w"), CSR: newCSR(t, key)})
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: newSerial(), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{idOf("/admin").URL()},
	}, leaf, newKey(t).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	between.AddCert(issuing)
	between.AddCert(leaf)
	if _, err := forged.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("a workload's certificate signed another")
	}
}

// A11: no bytes in a request make the authority panic.
func FuzzCSR(f *testing.F) {
	id := idOf("/w")
	key := newKey(f)
	f.Add(newCSR(f, key, id.String()))
	f.Add(newCSR(f, key))
	f.Add(rawURICSR(f, "spiffe://example.org/other", "x"))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := parseCSR(der, id)
		if err == nil && (r.public == nil || len(r.ski) != 20) {
			t.Errorf("accepted without a key: %+v", r)
		}
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("a bad request is an internal error: %v", err)
		}
	})
}

// A11: no stored bytes make the reader of CRLs panic.
func FuzzDecodeCRL(f *testing.F) {
	a := newWorld(f).replica()
	k := a.copyKnown()
	next, err := a.nextCRL(k.crl, []crlEntry{{Serial: "40", RevokedAt: time.Now(), NotAfter: time.Now()}}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(next.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = decodeCRL(b) })
}
