package chaincheck

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func extension(id int, critical bool, value []byte) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Critical: critical, Value: value})
	}
}

// lists replaces the lists; broken ones may be left out of the set.
func lists(w *world, ders ...[]byte) { w.params.CRLs, _ = NewCRLSet(ders) }

// TestA29RevocationFailsClosed: under Require every CA in the path needs a
// current list of its own, from the first handshake on.
func TestA29RevocationFailsClosed(t *testing.T) {
	bent := func(change func(*x509.RevocationList)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, change)) }
	}
	check(t, []row{
		{"current lists that name nothing", nil, ""},
		{"a list that names others", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, nil, w.issuing.leaf(t, nil)))
		}, ""},
		{"the leaf is revoked", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, nil, w.leaf))
		}, Revoked},
		{"the issuing CA is revoked", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 2, nil, w.issuing.cert), w.issuing.crl(t, 1, nil))
		}, Revoked},
		{"its serial on the list of another issuer", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 2, nil, w.leaf), w.issuing.crl(t, 1, nil))
		}, ""},
		{"no lists at all", func(_ *testing.T, w *world) { w.params.CRLs = nil }, RevocationUnknown},
		{"no list of the issuing CA", func(t *testing.T, w *world) { lists(w, w.root.crl(t, 1, nil)) }, RevocationUnknown},
		{"no list of the root", func(t *testing.T, w *world) { lists(w, w.issuing.crl(t, 1, nil)) }, RevocationUnknown},
		{"expired", bent(func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Second) }), RevocationUnknown},
		{"expired, but it names the leaf", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Second) }, w.leaf))
		}, Revoked},
		{"from a clock four minutes ahead", bent(func(l *x509.RevocationList) { l.ThisUpdate = now.Add(4 * time.Minute) }), ""},
		{"from the future", bent(func(l *x509.RevocationList) { l.ThisUpdate = now.Add(6 * time.Minute) }), RevocationUnknown},
		{"a critical extension that is not understood", bent(extension(99, true, []byte{5, 0})), RevocationUnknown},
		{"an extension that is not understood nor critical", bent(extension(99, false, []byte{5, 0})), ""},
		{"a critical entry extension", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, func(l *x509.RevocationList) {
				l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
			}, w.root.leaf(t, nil)))
		}, RevocationUnknown},
		{"a delta list", bent(extension(extDelta, true, []byte{2, 1, 1})), RevocationUnknown},
		{"an indirect list", bent(extension(extIDP, true, tlv(0x30, []byte{0x84, 1, 0xff}))), RevocationUnknown},
		{"a list of some reasons", bent(extension(extIDP, true, tlv(0x30, []byte{0x83, 2, 7, 0x80}))), RevocationUnknown},
		{"a list of one distribution point", bent(extension(extIDP, true, tlv(0x30, tlv(0xa0, tlv(0xa0, general(nameURI, "http://crl/1")))))), RevocationUnknown},
		{"a list of CA certificates says nothing of a leaf", bent(extension(extIDP, true, tlv(0x30, []byte{0x82, 1, 0xff}))), RevocationUnknown},
		{"a list of end-entity certificates", bent(extension(extIDP, true, tlv(0x30, []byte{0x81, 1, 0xff}))), ""},
		{"an issuing CA without cRLSign", func(t *testing.T, w *world) {
			w.issuing = ca(t, "issuing", w.root, nil)
			list := w.issuing.crl(t, 1, nil)
			// The same name and key, certified again without cRLSign.
			bare := caWithKey(t, "issuing", w.root, w.issuing.key, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
			w.params.Chain = []*x509.Certificate{bare.leaf(t, nil), bare.cert}
			lists(w, w.root.crl(t, 1, nil), list)
		}, RevocationUnknown},
		{"signed by another key of the same name", func(t *testing.T, w *world) {
			impostor := ca(t, "issuing", nil, nil)
			lists(w, w.root.crl(t, 1, nil), impostor.crl(t, 1, nil))
		}, RevocationUnknown},
		{"signed by another key that claims the same key identifier", func(t *testing.T, w *world) {
			impostor := ca(t, "issuing", nil, func(c *x509.Certificate) { c.SubjectKeyId = w.issuing.cert.SubjectKeyId })
			lists(w, w.root.crl(t, 1, nil), impostor.crl(t, 9, nil))
		}, RevocationUnknown},
		{"a forged list does not hide the genuine one", func(t *testing.T, w *world) {
			impostor := ca(t, "issuing", nil, func(c *x509.Certificate) { c.SubjectKeyId = w.issuing.cert.SubjectKeyId })
			lists(w, w.root.crl(t, 1, nil), impostor.crl(t, 9, nil), w.issuing.crl(t, 2, nil, w.leaf))
		}, Revoked},
		{"the newest list decides", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 3, nil, w.leaf), w.issuing.crl(t, 2, nil))
		}, Revoked},
		{"an altered list", func(t *testing.T, w *world) {
			der := w.issuing.crl(t, 1, nil)
			der[len(der)-1] ^= 1
			lists(w, w.root.crl(t, 1, nil), der)
		}, RevocationUnknown},
	})
}

func TestA29AListWithoutANumberIsNotUsed(t *testing.T) {
	// crypto/x509 signs no such list: the corpus has them.
	for _, c := range limboCases(t) {
		if c.ID != "crl::crlnumber-missing" && c.ID != "crl::crlnumber-critical" {
			continue
		}
		if _, err := NewCRLSet([][]byte{pemDER(t, c.CRLs[0])}); err == nil || !strings.Contains(err.Error(), "number") {
			t.Errorf("%s: %v", c.ID, err)
		}
	}
}

func TestPoliciesOfRevocation(t *testing.T) {
	check(t, []row{
		{"preferred: a missing list is accepted", func(_ *testing.T, w *world) { w.params.CRLs, w.params.Revocation = nil, Prefer }, ""},
		{"preferred: a revoked leaf is refused", func(t *testing.T, w *world) {
			w.params.Revocation = Prefer
			lists(w, w.issuing.crl(t, 2, nil, w.leaf))
		}, Revoked},
		{"off: not looked at", func(t *testing.T, w *world) {
			w.params.Revocation = Off
			lists(w, w.issuing.crl(t, 2, nil, w.leaf))
		}, ""},
		{"a policy that does not exist", func(_ *testing.T, w *world) { w.params.Revocation = 7 }, BadParams},
	})
	w := newWorld(t)
	w.params.CRLs, w.params.Revocation = nil, Prefer
	result := wantCause(t, w.params, "")
	if got := result.Links[0].String(); !strings.Contains(got, "revocation unknown: no CRL of") {
		t.Errorf("the link does not say what is not known: %s", got)
	}
}

func TestABrokenListIsLeftOutAndNamed(t *testing.T) {
	w := newWorld(t)
	set, err := NewCRLSet([][]byte{w.root.crl(t, 1, nil), []byte("junk"), w.issuing.crl(t, 1, nil)})
	if err == nil || !strings.Contains(err.Error(), "CRL 1 is not used") {
		t.Errorf("got %v", err)
	}
	w.params.CRLs = set
	wantCause(t, w.params, "")
}

// TestAListIsVerifiedOncePerKey: a list of a million entries is hashed once.
func TestAListIsVerifiedOncePerKey(t *testing.T) {
	w := newWorld(t)
	first := wantCause(t, w.params, "").Work.Signatures
	second := wantCause(t, w.params, "").Work.Signatures
	if first != 4 || second != 2 {
		t.Errorf("signature checks: first %d, then %d; want 4, then 2", first, second)
	}
}

// TestEveryEntryOfAHugeListIsFound also covers serials with leading zeros
// and the first and last entry.
func TestEveryEntryOfAHugeListIsFound(t *testing.T) {
	w := newWorld(t)
	const entries = 20_000
	template := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	for i := range entries {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(int64(i)*257 + 1), RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, w.issuing.cert, w.issuing.key)
	if err != nil {
		t.Fatal(err)
	}
	set := crls(t, der)
	for i := range entries {
		cert := &x509.Certificate{SerialNumber: big.NewInt(int64(i)*257 + 1)}
		if r := set.Lookup(cert, w.issuing.cert, now, nil); r.Status != StatusRevoked {
			t.Fatalf("entry %d: %s", i, r)
		}
		cert.SerialNumber.Add(cert.SerialNumber, big.NewInt(1))
		if r := set.Lookup(cert, w.issuing.cert, now, nil); r.Status != StatusGood {
			t.Fatalf("beside entry %d: %s", i, r)
		}
	}
}

// TestListsThatRFC5280ForbidsAreNotUsed bends lists that crypto/x509 would
// not sign; what is refused here is refused before any signature is looked at.
func TestListsThatRFC5280ForbidsAreNotUsed(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		bend func(*pkix.CertificateList)
		want string
	}{
		"no next update": {func(l *pkix.CertificateList) { l.TBSCertList.NextUpdate = time.Time{} }, "next update"},
		"no number": {func(l *pkix.CertificateList) {
			l.TBSCertList.Extensions = slices.DeleteFunc(l.TBSCertList.Extensions, func(e pkix.Extension) bool { return arc(e.Id) == extCRLNumber })
		}, "number"},
		"a critical number":                   {criticalExtension(extCRLNumber), "critical"},
		"a critical authority key identifier": {criticalExtension(extAKI), "critical"},
		"signed over SHA-1": {func(l *pkix.CertificateList) {
			l.TBSCertList.Signature.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
			l.SignatureAlgorithm = l.TBSCertList.Signature
		}, "algorithm"},
	} {
		var list pkix.CertificateList
		if _, err := asn1.Unmarshal(w.issuing.crl(t, 3, nil), &list); err != nil {
			t.Fatal(err)
		}
		list.TBSCertList.Raw = nil
		c.bend(&list)
		der, err := asn1.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		if set, err := NewCRLSet([][]byte{der}); err == nil || !strings.Contains(err.Error(), c.want) || len(set.byIssuer) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewCRLSet([][]byte{w.issuing.crl(t, 3, extension(extIDP, true, tlv(0x30, []byte{0x81, 1, 0xff, 0x82, 1, 0xff})))}); err == nil {
		t.Error("a list for no certificate is used")
	}
}

func criticalExtension(id int) func(*pkix.CertificateList) {
	return func(l *pkix.CertificateList) {
		for i := range l.TBSCertList.Extensions {
			if arc(l.TBSCertList.Extensions[i].Id) == id {
				l.TBSCertList.Extensions[i].Critical = true
			}
		}
	}
}

func TestReasonsHaveTheirNames(t *testing.T) {
	for code, want := range map[int]string{0: "unspecified", 1: "keyCompromise", 6: "certificateHold", 7: "reason 7", 10: "aACompromise", 99: "reason 99", -1: "reason -1"} {
		if got := reasonName(code); got != want {
			t.Errorf("reason %d is %q, want %q", code, got, want)
		}
	}
}
