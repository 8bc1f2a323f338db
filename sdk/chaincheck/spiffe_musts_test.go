package chaincheck

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// One test for each MUST of the SPIFFE-ID and X509-SVID standards that a
// verifier can keep, named by its section; what is not here is in
// standard_test.go, and docs/specs.md lists all. MUSTs of who issues are
// tested in internal/ca.

// withID presents a leaf with this URI as its only name; when it names
// another trust domain, roots are known for that too. What crypto/x509 does
// not read as a URI is refused as it comes, and then stands for no URI.
func withID(id string) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		der := rawLeaf(t, w.issuing, san(general(nameURI, id)))
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			_, err := VerifyLeafRaw([][]byte{der, w.issuing.cert.Raw}, w.params)
			holdsCause(t, nil, err, Malformed)
			leaf = w.issuing.leaf(t, func(c *x509.Certificate) { c.URIs = nil })
		}
		w.present(leaf)
		if parsed, err := spiffeid.FromString(id); err == nil {
			w.params.Roots[parsed.TrustDomain()] = w.params.Roots[domain]
		}
	}
}

func TestSPIFFEID2SchemeIsSpiffe(t *testing.T) {
	check(t, []row{
		{"spiffe", withID("spiffe://example.org/a"), ""},
		{"https", withID("https://example.org/a"), WrongSAN},
		{"SPIFFE", withID("SPIFFE://example.org/a"), WrongSAN},
		{"spiffes", withID("spiffes://example.org/a"), WrongSAN},
		{"one slash", withID("spiffe:/example.org/a"), WrongSAN},
		{"no slash", withID("spiffe:example.org/a"), WrongSAN},
	})
}

func TestSPIFFEID2NeitherQueryNorFragment(t *testing.T) {
	check(t, []row{
		{"a query", withID("spiffe://example.org/a?b=c"), WrongSAN},
		{"an empty query", withID("spiffe://example.org/a?"), WrongSAN},
		{"a fragment", withID("spiffe://example.org/a#b"), WrongSAN},
		{"an empty fragment", withID("spiffe://example.org/a#"), WrongSAN},
		{"a query right after the trust domain", withID("spiffe://example.org?a"), WrongSAN},
	})
}

func TestSPIFFEID21TrustDomainIsNotEmpty(t *testing.T) {
	check(t, []row{
		{"empty", withID("spiffe:///a"), WrongSAN},
		{"nothing at all", withID("spiffe://"), WrongSAN},
	})
}

func TestSPIFFEID21NeitherUserinfoNorPort(t *testing.T) {
	check(t, []row{
		{"user information", withID("spiffe://u@example.org/a"), WrongSAN},
		{"an empty user", withID("spiffe://@example.org/a"), WrongSAN},
		{"a port", withID("spiffe://example.org:443/a"), WrongSAN},
		{"an empty port", withID("spiffe://example.org:/a"), WrongSAN},
	})
}

func TestSPIFFEID21TrustDomainIsLowerCase(t *testing.T) {
	check(t, []row{{"capitals", withID("spiffe://Example.org/a"), WrongSAN}, {"one capital at the end", withID("spiffe://example.orG/a"), WrongSAN}})
}

func TestSPIFFEID21TrustDomainCharacters(t *testing.T) {
	rows := []row{
		{"letters, digits, dots, dashes, underscores", withID("spiffe://a_b-c.d0/a"), ""},
		{"a dash first", withID("spiffe://-a/a"), ""},
	}
	for _, bad := range []string{"exa mple", "exa~mple", "exa$mple", "exa*mple", "ex\xc3\xa4mple", "[::1]", "a,b", "a;b", "a=b", "a\\b"} {
		rows = append(rows, row{"not " + bad, withID("spiffe://" + bad + "/a"), WrongSAN})
	}
	check(t, rows)
}

func TestSPIFFEID21NoPercentEncodingInTheTrustDomain(t *testing.T) {
	check(t, []row{{"an escaped dot", withID("spiffe://example%2eorg/a"), WrongSAN}, {"an escaped letter", withID("spiffe://ex%61mple.org/a"), WrongSAN}})
}

func TestSPIFFEID21AddressesAreOrdinaryTrustDomains(t *testing.T) {
	check(t, []row{
		{"an IPv4 address", withID("spiffe://10.0.0.1/a"), ""},
		{"loopback", withID("spiffe://127.0.0.1/a"), ""},
		{"one label", withID("spiffe://localhost/a"), ""},
		{"no DNS name", withID("spiffe://a_-/a"), ""},
	})
}

func TestSPIFFEID22NoPercentEncodingInThePath(t *testing.T) {
	check(t, []row{
		{"a letter", withID("spiffe://example.org/%61"), WrongSAN},
		{"a slash", withID("spiffe://example.org/a%2fb"), WrongSAN},
		{"a dot", withID("spiffe://example.org/%2e%2e/b"), WrongSAN},
	})
}

func TestSPIFFEID22NoEmptyAndNoRelativeSegments(t *testing.T) {
	check(t, []row{
		{"empty", withID("spiffe://example.org//a"), WrongSAN},
		{"empty in between", withID("spiffe://example.org/a//b"), WrongSAN},
		{"a dot", withID("spiffe://example.org/a/./b"), WrongSAN},
		{"two dots", withID("spiffe://example.org/a/../b"), WrongSAN},
		{"two dots at the end", withID("spiffe://example.org/a/.."), WrongSAN},
		{"three dots are a name", withID("spiffe://example.org/..."), ""},
	})
}

func TestSPIFFEID22NoTrailingSlash(t *testing.T) {
	check(t, []row{{"after a path", withID("spiffe://example.org/a/"), WrongSAN}, {"after the trust domain", withID("spiffe://example.org/"), WrongSAN}})
}

func TestSPIFFEID22PathCharacters(t *testing.T) {
	rows := []row{{"letters, digits, dots, dashes, underscores", withID("spiffe://example.org/A_b-c.0"), ""}}
	for _, c := range "~!$&'()*+,;=:@|\"<>^`{}" {
		rows = append(rows, row{"not " + string(c), withID("spiffe://example.org/a" + string(c) + "b"), WrongSAN})
	}
	check(t, rows)
}

func TestSPIFFEID23UpTo2048Bytes(t *testing.T) {
	long := func(n int) string {
		return "spiffe://example.org/" + strings.Repeat("a", n-len("spiffe://example.org/"))
	}
	check(t, []row{
		{"2048 bytes", withID(long(2048)), ""},
		{"2049 bytes", withID(long(2049)), WrongSAN},
		{"a trust domain of 255 bytes", withID("spiffe://" + strings.Repeat("a", 255) + "/b"), ""},
		{"a trust domain of 256 bytes", withID("spiffe://" + strings.Repeat("a", 256) + "/b"), WrongSAN},
	})
}

func TestSPIFFEID24ThePathIsCaseSensitive(t *testing.T) {
	w := newWorld(t)
	withID("spiffe://example.org/Web")(t, w)
	if r := wantCause(t, w.params, ""); r.ID.String() != "spiffe://example.org/Web" {
		t.Errorf("verified as %s", r.ID)
	}
	w.params.Denied = denials(t, Denial{ID: spiffeid.RequireFromString("spiffe://example.org/web")})
	wantCause(t, w.params, "")
}

func TestSPIFFEID31SignedByAnAuthorityOfItsTrustDomain(t *testing.T) {
	check(t, []row{
		{"its own", nil, ""},
		{"another's, though trusted", func(t *testing.T, w *world) {
			w.params.Roots = Roots{domain: {ca(t, "elsewhere", nil, nil).cert}, other: {w.root.cert}}
		}, WrongTrustDomain},
		{"nobody's", func(t *testing.T, w *world) {
			w.params.Roots[domain] = []*x509.Certificate{ca(t, "elsewhere", nil, nil).cert}
		}, UnknownCA},
		{"an authority certified by a foreign one", func(t *testing.T, w *world) {
			// Chaining of trust: our CA under a foreign root that is ours to trust.
			w.root = ca(t, "foreign", nil, nil)
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, nil)
		}, ""},
	})
}

func TestSPIFFEID32IDAndKeyAreSigned(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	for name, part := range map[string][]byte{"the ID": []byte(workload), "the key": w.leaf.RawSubjectPublicKeyInfo[40:]} {
		der := bytes.Clone(w.leaf.Raw)
		at := bytes.Index(der, part)
		if at < 0 {
			t.Fatal(name)
		}
		for _, i := range []int{len(part) - 1, len(part) / 2} {
			bent := bytes.Clone(der)
			bent[at+i] ^= 1
			if _, err := VerifyLeafRaw([][]byte{bent, w.issuing.cert.Raw}, w.params); err == nil {
				t.Errorf("%s was changed after signing and accepted", name)
			}
		}
	}
}

func TestX509SVID2MoreThanOneURIIsRefused(t *testing.T) {
	id := general(nameURI, workload)
	check(t, []row{
		{"two SPIFFE IDs", bendLeaf(san(id, general(nameURI, "spiffe://example.org/b"))), WrongSAN},
		{"a SPIFFE ID and a URN", bendLeaf(san(id, general(nameURI, "urn:x:y"))), WrongSAN},
		{"twice the same", bendLeaf(san(id, id)), WrongSAN},
		{"in a signing certificate that is an SVID", bendCA(san(general(nameURI, "spiffe://example.org"), general(nameURI, "https://example.org/"))), WrongSAN},
	})
}

func TestX509SVID32SigningCertificatesAuthenticateNobody(t *testing.T) {
	check(t, []row{
		{"cA and keyCertSign", bendLeaf(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }), BadUsage},
		{"the issuing CA itself", func(_ *testing.T, w *world) { w.params.Chain = []*x509.Certificate{w.issuing.cert} }, WrongSAN},
		{"an issuing CA with a workload's ID", func(t *testing.T, w *world) {
			w.params.Chain = []*x509.Certificate{ca(t, "sub", w.root, san(general(nameURI, workload))).cert}
		}, BadUsage},
		{"the root itself", func(_ *testing.T, w *world) { w.params.Chain = []*x509.Certificate{w.root.cert} }, WrongSAN},
	})
}

func TestX509SVID41SigningCertificatesAreCAs(t *testing.T) {
	check(t, []row{
		{"cA false", bendCA(func(c *x509.Certificate) { c.IsCA = false; c.SubjectKeyId = []byte{1, 2, 3, 4} }), BadUsage},
		{"no basic constraints", bendCA(func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.IsCA, c.SubjectKeyId = false, false, []byte{1, 2, 3, 4}
		}), BadUsage},
		{"basic constraints that are not critical", bendCA(raw(extBasicConstraints, false, tlv(0x30, []byte{1, 1, 0xff}))), Malformed},
		{"with a path length", bendCA(func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), ""},
	})
}

func TestX509SVID41LeavesAreNoCAs(t *testing.T) {
	check(t, []row{
		{"cA true", bendLeaf(func(c *x509.Certificate) { c.IsCA = true }), BadUsage},
		{"cA true, and no keyCertSign", bendLeaf(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage = x509.KeyUsageDigitalSignature }), BadUsage},
		{"no basic constraints, which is false", bendLeaf(func(c *x509.Certificate) { c.BasicConstraintsValid = false }), ""},
		{"a path length", bendLeaf(raw(extBasicConstraints, true, tlv(0x30, []byte{2, 1, 0}))), Malformed},
	})
}

func TestX509SVID43KeyUsageIsThereAndCritical(t *testing.T) {
	check(t, []row{
		{"a leaf without it", bendLeaf(func(c *x509.Certificate) { c.KeyUsage = 0 }), BadUsage},
		{"a leaf's, not critical", bendLeaf(raw(extKeyUsage, false, []byte{3, 2, 7, 0x80})), BadUsage},
		{"a signing certificate without it", bendCA(func(c *x509.Certificate) { c.KeyUsage = 0 }), BadUsage},
		{"a signing SVID's, not critical", bendCA(func(c *x509.Certificate) {
			san(general(nameURI, "spiffe://example.org"))(c)
			raw(extKeyUsage, false, []byte{3, 2, 1, 6})(c)
		}), BadUsage},
		{"not critical in a CA that is no SVID, where RFC 5280 only recommends it", bendCA(raw(extKeyUsage, false, []byte{3, 2, 1, 6})), ""},
	})
}

func TestX509SVID43SigningCertificatesHaveKeyCertSign(t *testing.T) {
	check(t, []row{
		{"keyCertSign alone", func(t *testing.T, w *world) {
			w.params.Revocation = Prefer
			w.reissue(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
		}, ""},
		{"cRLSign alone", bendCA(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }), BadUsage},
		{"digitalSignature alone", bendCA(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), BadUsage},
	})
}

func TestX509SVID43LeavesHaveDigitalSignature(t *testing.T) {
	check(t, []row{
		{"keyEncipherment alone", bendLeaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), BadUsage},
		{"keyAgreement alone", bendLeaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), BadUsage},
		{"all three", bendLeaf(func(c *x509.Certificate) {
			c.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
		}), ""},
	})
}

func TestX509SVID43LeavesHaveNeitherKeyCertSignNorCRLSign(t *testing.T) {
	check(t, []row{
		{"keyCertSign", bendLeaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), BadUsage},
		{"cRLSign", bendLeaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), BadUsage},
	})
}

// TestX509SVID44PurposesOfASide: that a leaf has both purposes is asked of
// who issues it; who validates (5.2) looks at the one that is used.
func TestX509SVID44PurposesOfASide(t *testing.T) {
	alone := func(side Usage, eku x509.ExtKeyUsage) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.params.Usage = side
			w.present(w.issuing.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{eku} }))
		}
	}
	check(t, []row{
		{"clientAuth alone, of a client", alone(Client, x509.ExtKeyUsageClientAuth), ""},
		{"serverAuth alone, of a server", alone(Server, x509.ExtKeyUsageServerAuth), ""},
		{"serverAuth alone, of a client", alone(Client, x509.ExtKeyUsageServerAuth), BadUsage},
		{"clientAuth alone, of a server", alone(Server, x509.ExtKeyUsageClientAuth), BadUsage},
	})
}

func TestX509SVID52TheIDHasAPath(t *testing.T) {
	check(t, []row{
		{"a trust domain's ID", withID("spiffe://example.org"), WrongSAN},
		{"with a slash", withID("spiffe://example.org/"), WrongSAN},
	})
}

func TestDatesAreWrittenAsRFC5280Demands(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	for _, tt := range []struct {
		name     string
		from, to []byte
		accepted bool
	}{
		{"UTCTime", instant(23, now), instant(23, now.Add(time.Hour)), true},
		{"GeneralizedTime after 2049", instant(23, now), instant(24, time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)), true},
		{"no end", instant(23, now), tlv(24, []byte("99991231235959Z")), true},
		{"GeneralizedTime before 2050", instant(24, now), instant(23, now.Add(time.Hour)), false},
		{"no seconds", tlv(23, []byte("2601010000Z")), instant(23, now.Add(time.Hour)), false},
		{"a time zone", instant(23, now), tlv(23, []byte("260601000000+0000")), false},
		{"fractions of a second", instant(23, now), tlv(24, []byte("20600101000000.5Z")), false},
		{"no Z", instant(23, now), tlv(24, []byte("20600101000000")), false},
		{"another type", tlv(22, []byte("260101000000Z")), instant(23, now.Add(time.Hour)), false},
		{"the end before the beginning", instant(23, now), instant(23, now.Add(-time.Hour)), false},
	} {
		bent := takeApart(t, w.leaf, w.issuing.key)
		bent.validity = tlv(0x30, tt.from, tt.to)
		_, err := VerifyLeafRaw([][]byte{bent.build(t), w.issuing.cert.Raw}, w.params)
		if (err == nil) != tt.accepted {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
