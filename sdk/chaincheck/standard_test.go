package chaincheck

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// One test for each MUST of the X509-SVID standard that a verifier can check;
// more are in spiffe_musts_test.go.

func TestX509SVID2ExactlyOneURI(t *testing.T) {
	id := general(nameURI, workload)
	check(t, []row{
		{"one SPIFFE ID is accepted", nil, ""},
		{"other types of names beside it are accepted", bendLeaf(san(id, general(nameDNS, "web.retail"), general(nameIP, "\x0a\x00\x00\x01"))), ""},
		{"no URI", bendLeaf(san(general(nameDNS, "web.retail"))), WrongSAN},
		{"no names at all", bendLeaf(func(c *x509.Certificate) { c.URIs = nil }), WrongSAN},
		{"two SPIFFE IDs", bendLeaf(san(id, general(nameURI, "spiffe://example.org/b"))), WrongSAN},
		{"the same SPIFFE ID twice", bendLeaf(san(id, id)), WrongSAN},
		{"a SPIFFE ID and another URI", bendLeaf(san(id, general(nameURI, "https://example.org/"))), WrongSAN},
	})
}

func TestX509SVID31LeafIDHasAPath(t *testing.T) {
	check(t, []row{
		{"a trust domain's ID", bendLeaf(san(general(nameURI, "spiffe://example.org"))), WrongSAN},
		{"a trust domain's ID with a slash", bendLeaf(san(general(nameURI, "spiffe://example.org/"))), WrongSAN},
	})
}

func TestX509SVID31URIIsCriticalWithoutASubject(t *testing.T) {
	names := tlv(0x30, general(nameURI, workload))
	bare := func(critical bool) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.Subject = pkix.Name{}
			raw(extSAN, critical, names)(c)
		}
	}
	check(t, []row{
		{"critical", bendLeaf(bare(true)), ""},
		{"not critical", bendLeaf(bare(false)), Malformed},
	})
}

func TestX509SVID32SigningCertificates(t *testing.T) {
	signsAs := func(u string) func(*testing.T, *world) {
		return bendCA(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: u}} })
	}
	check(t, []row{
		{"the SPIFFE ID of the trust domain", signsAs(""), ""},
		{"a SPIFFE ID with a path", signsAs("/ca"), WrongSAN},
		{"a SPIFFE ID in capitals is no way around", bendCA(san(general(nameURI, "SPIFFE://example.org/ca"))), WrongSAN},
		{"a URI of another scheme", bendCA(func(c *x509.Certificate) { c.URIs = []*url.URL{uri(t, "https://example.org/ca")} }), ""},
		{"a signing certificate as leaf", bendLeaf(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }), BadUsage},
	})
}

func TestX509SVID42NameConstraintsHoldForTheSPIFFEID(t *testing.T) {
	permit := func(domains ...string) func(*testing.T, *world) {
		return bendCA(func(c *x509.Certificate) { c.PermittedDNSDomainsCritical, c.PermittedURIDomains = true, domains })
	}
	check(t, []row{
		{"its trust domain is permitted", permit("example.org"), ""},
		{"one of several", permit("other.example", "example.org"), ""},
		{"another trust domain is permitted", permit("other.example"), Constraint},
	})
}

// TestA27ExtendedKeyUsage: X509-SVID 4.4, and stricter: in a handshake the
// purpose must be stated.
func TestA27ExtendedKeyUsage(t *testing.T) {
	eku := func(side Usage, usages ...x509.ExtKeyUsage) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.params.Usage = side
			w.present(w.issuing.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = usages }))
		}
	}
	check(t, []row{
		{"both, as a client", eku(Client, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth), ""},
		{"both, as a server", eku(Server, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth), ""},
		{"serverAuth only, as a client", eku(Client, x509.ExtKeyUsageServerAuth), BadUsage},
		{"clientAuth only, as a server", eku(Server, x509.ExtKeyUsageClientAuth), BadUsage},
		{"emailProtection only", eku(Client, x509.ExtKeyUsageEmailProtection), BadUsage},
		{"any purpose is no purpose", eku(Client, x509.ExtKeyUsageAny), BadUsage},
		{"none, as a client", eku(Client), BadUsage},
		{"none, outside a handshake", eku(Any), ""},
		{"an empty list", func(t *testing.T, w *world) {
			w.params.Usage = Any
			w.present(w.issuing.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil; raw(extEKU, false, []byte{0x30, 0})(c) }))
		}, BadUsage},
		{"a critical list", bendLeaf(raw(extEKU, true, tlv(0x30, []byte("\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02")))), ""},
		{"an issuer limited to another purpose", bendCA(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), BadUsage},
		{"an issuer limited to this purpose", bendCA(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), ""},
		{"no side was named", func(_ *testing.T, w *world) { w.params.Usage = 0 }, BadParams},
	})
}

func TestX509SVID51PathValidationFollowsRFC5280(t *testing.T) {
	at := func(d time.Duration) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.params.Revocation = Off
			w.params.Now = w.leaf.NotAfter.Add(d)
		}
	}
	check(t, []row{
		{"valid through the whole second of notAfter", at(999 * time.Millisecond), ""},
		{"expired one second later", at(time.Second), Expired},
		{"valid from notBefore", func(t *testing.T, w *world) { w.params.Revocation, w.params.Now = Off, w.leaf.NotBefore }, ""},
		{"not valid one second before", func(t *testing.T, w *world) {
			w.params.Revocation, w.params.Now = Off, w.leaf.NotBefore.Add(-time.Second)
		}, NotYetValid},
		{"an expired issuer", bendCA(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), Expired},
		{"an expired root", func(t *testing.T, w *world) {
			w.root = ca(t, "root", nil, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, nil)
		}, Expired},
		{"an issuer not in the bundle nor in the chain", func(_ *testing.T, w *world) { w.params.Chain = w.params.Chain[:1] }, UnknownCA},
		{"an unknown critical extension in the leaf", bendLeaf(unknownExtension), Constraint},
		{"an unknown critical extension in an issuer", bendCA(unknownExtension), Constraint},
		{"a path longer than the issuer's constraint", func(t *testing.T, w *world) {
			w.reissue(t, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
			sub := ca(t, "sub", w.issuing, nil)
			w.params.Chain = []*x509.Certificate{sub.leaf(t, nil), sub.cert, w.issuing.cert}
			w.params.Revocation = Off
		}, Constraint},
		{"a CA that demands explicit policies", bendCA(raw(extPolicyConstraints, true, tlv(0x30, []byte{0x80, 1, 0}))), Constraint},
		{"a leaf with name constraints", bendLeaf(raw(extNameConstraints, true, tlv(0x30, tlv(0xa0, tlv(0x30, general(nameURI, "example.org")))))), Malformed},
	})
}

func unknownExtension(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55738, 666, 1}, Critical: true, Value: []byte{5, 0}})
}

func TestX509SVID52SchemeIsSpiffe(t *testing.T) {
	check(t, []row{
		{"https", bendLeaf(san(general(nameURI, "https://example.org/ns/retail/sa/web"))), WrongSAN},
		{"spiffe in capitals", bendLeaf(san(general(nameURI, "SPIFFE://example.org/ns/retail/sa/web"))), WrongSAN},
		{"urn", bendLeaf(san(general(nameURI, "urn:spiffe://example.org/a"))), WrongSAN},
	})
}

// TestA26NamesOfOtherTypesAndSpellingsAreNoSPIFFEID also covers A02.
func TestA26NamesOfOtherTypesAndSpellingsAreNoSPIFFEID(t *testing.T) {
	rows := []row{
		{"in a DNS name", bendLeaf(san(general(nameDNS, workload))), Malformed},
		{"in an e-mail name", bendLeaf(san(general(nameEmail, workload+"@example.org"))), Malformed},
		{"in an otherName", bendLeaf(san(tlv(0xa0, []byte{6, 3, 42, 3, 4}, tlv(0xa0, tlv(0x0c, []byte(workload)))))), WrongSAN},
		{"in a registered ID", bendLeaf(san(general(nameRID, workload))), WrongSAN},
		{"in the common name", bendLeaf(func(c *x509.Certificate) { c.URIs = nil; c.Subject.CommonName = workload }), WrongSAN},
	}
	for name, id := range map[string]string{
		"a port": "spiffe://example.org:443/a", "user information": "spiffe://u@example.org/a", "a query": "spiffe://example.org/a?b", "a fragment": "spiffe://example.org/a#b",
		"a dot segment": "spiffe://example.org/a/../b", "a single dot": "spiffe://example.org/./a", "an empty segment": "spiffe://example.org//a", "a trailing slash": "spiffe://example.org/a/",
		"an escape": "spiffe://example.org/%61", "an upper-case trust domain": "spiffe://Example.org/a", "an IPv6 host": "spiffe://[::1]/a", "no trust domain": "spiffe:///a",
	} {
		rows = append(rows, row{"a SPIFFE ID with " + name, bendLeaf(func(c *x509.Certificate) {
			c.URIs = nil
			san(general(nameURI, id))(c)
		}), WrongSAN})
	}
	check(t, rows)
	// What x509.ParseCertificate itself refuses, or lets through to us.
	w := newWorld(t)
	for name, id := range map[string]string{
		"a NUL": "spiffe://example.org/a\x00.b", "a space": "spiffe://example.org/a b", "a newline": "spiffe://example.org/a\n", "a byte outside ASCII": "spiffe://example.org/\xc3\xa4", "an IPv6 zone": "spiffe://[fe80::1%25en0]/a",
	} {
		der := rawLeaf(t, w.issuing, san(general(nameURI, id)))
		p := w.params
		if _, err := VerifyLeafRaw([][]byte{der, w.issuing.cert.Raw}, p); err == nil {
			t.Errorf("a SPIFFE ID with %s was accepted", name)
		}
	}
}

func TestCertificatesThatRFC5280Forbids(t *testing.T) {
	check(t, []row{
		{"serial zero", bendLeaf(func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0) }), Malformed},
		{"a serial of 21 octets", bendLeaf(func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 160) }), Malformed},
		{"a CA without a subject", bendCA(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), Malformed},
		{"an underscore in a DNS name", bendLeaf(san(general(nameURI, workload), general(nameDNS, "a_b.example.org"))), Malformed},
		{"an IP address as a DNS name", bendLeaf(san(general(nameURI, workload), general(nameDNS, "10.0.0.1"))), Malformed},
		{"more names than anyone needs", bendLeaf(func(c *x509.Certificate) { c.DNSNames = strings.Split(strings.Repeat("a.example.org ", 600)+"b", " ") }), TooComplex},
	})
}

// TestWhatCryptoX509RefusesToday is refused here too: the rules do not hang
// on another parser's strictness.
func TestWhatCryptoX509RefusesToday(t *testing.T) {
	w := newWorld(t)
	for _, id := range []int{extSKI, extAKI} {
		bent := *w.issuing.cert
		bent.Extensions = slices.Clone(bent.Extensions)
		for i := range bent.Extensions {
			if arc(bent.Extensions[i].Id) == id {
				bent.Extensions[i].Critical = true
			}
		}
		if _, err := factsOf(&bent); err == nil || err.Cause != Malformed {
			t.Errorf("critical key identifier 2.5.29.%d: %v", id, err)
		}
	}
	for name, der := range map[string][]byte{
		"a DNS name encoded as constructed":      tlv(0x30, tlv(0xa2, []byte("a.example.org"))),
		"an otherName encoded as primitive":      tlv(0x30, tlv(0x80, []byte("x"))),
		"a tag beyond registeredID":              tlv(0x30, tlv(0x89, []byte("x"))),
		"a universal tag":                        tlv(0x30, tlv(0x16, []byte("a.example.org"))),
		"trailing bytes":                         append(tlv(0x30, general(nameDNS, "a")), 0),
		"no names":                               {0x30, 0},
		"a DNS name longer than 253":             tlv(0x30, general(nameDNS, strings.Repeat("a.", 127)+"a")),
		"a label longer than 63":                 tlv(0x30, general(nameDNS, strings.Repeat("a", 64))),
		"a wildcard that is not the whole label": tlv(0x30, general(nameDNS, "a*.example.org")),
		"an e-mail address without a host":       tlv(0x30, general(nameEmail, "a")),
		"a URI with a control character":         tlv(0x30, general(nameURI, "spiffe://a/\x07")),
		"a URI without a scheme":                 tlv(0x30, general(nameURI, "//a/b")),
		"an IP address of five octets":           tlv(0x30, general(nameIP, "12345")),
	} {
		if _, err := parseNames(w.leaf, der); err == nil || err.Cause != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for algorithm := range x509.SignatureAlgorithm(32) {
		weak := algorithm <= x509.ECDSAWithSHA1 && algorithm != x509.SHA256WithRSA && algorithm != x509.SHA384WithRSA && algorithm != x509.SHA512WithRSA
		err := checkAlgorithm(&x509.Certificate{SignatureAlgorithm: algorithm})
		if weak && (err == nil || err.Cause != WeakKey) {
			t.Errorf("%s is accepted", algorithm)
		}
	}
}

func TestARefusalNamesTheCertificateAndTheReason(t *testing.T) {
	w := newWorld(t)
	w.present(w.issuing.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil; c.SerialNumber = big.NewInt(0xabc) }))
	for side, want := range map[Usage]string{Client: "lacks clientAuth", Server: "lacks serverAuth"} {
		w.params.Usage = side
		_, err := Verify(w.params)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"`+workload+`" (serial abc)`) || !strings.Contains(err.Error(), "(bad_usage)") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := VerifyLeafRaw(nil, w.params); err == nil || strings.Contains(err.Error(), ": :") {
		t.Errorf("got %v", err)
	}
}
