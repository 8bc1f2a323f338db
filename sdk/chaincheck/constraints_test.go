package chaincheck

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// nameConstraints is the raw extension: permitted and excluded bases.
func nameConstraints(permitted, excluded [][]byte) func(*x509.Certificate) {
	var parts [][]byte
	for n, bases := range [][][]byte{permitted, excluded} {
		if bases == nil {
			continue
		}
		var trees []byte
		for _, base := range bases {
			trees = append(trees, tlv(0x30, base)...)
		}
		parts = append(parts, tlv(0xa0|byte(n), trees))
	}
	return raw(extNameConstraints, true, tlv(0x30, parts...))
}

func permitURI(hosts ...string) func(*x509.Certificate) {
	var bases [][]byte
	for _, h := range hosts {
		bases = append(bases, general(nameURI, h))
	}
	return nameConstraints(bases, nil)
}

func excludeURI(host string) func(*x509.Certificate) {
	return nameConstraints(nil, [][]byte{general(nameURI, host)})
}

// TestA28AConstrainedCACannotMintAnotherDomainsIDs: by no spelling of the
// constraint or of the name, directly or through a CA below.
func TestA28AConstrainedCACannotMintAnotherDomainsIDs(t *testing.T) {
	check(t, []row{
		{"its own domain", bendCA(permitURI("example.org")), ""},
		{"its own domain written in capitals", bendCA(permitURI("EXAMPLE.org")), ""},
		{"another domain", bendCA(permitURI("other.example")), Constraint},
		{"the domain below", bendCA(permitURI("a.example.org")), Constraint},
		{"domains below do not include the domain", bendCA(permitURI(".example.org")), Constraint},
		{"a suffix that is no label", bendCA(permitURI("le.org")), Constraint},
		{"a wildcard is no constraint", bendCA(permitURI("*.org")), Malformed},
		{"a wildcard for everything is no constraint", bendCA(permitURI("*")), Malformed},
		{"an IPv6 address with a zone is no constraint", bendCA(permitURI("[fe80::1%25eth0]")), Malformed},
		{"a whole URI is no constraint", bendCA(permitURI("spiffe://example.org")), Malformed},
		{"the empty constraint permits every host", bendCA(permitURI("")), ""},
		{"excluded", bendCA(excludeURI("example.org")), Constraint},
		{"excluded in capitals", bendCA(excludeURI("Example.ORG")), Constraint},
		{"everything excluded", bendCA(excludeURI("")), Constraint},
		{"another excluded", bendCA(excludeURI("other.example")), ""},
		{"domains below excluded", bendCA(excludeURI(".example.org")), ""},
		{"permitted and excluded", bendCA(nameConstraints([][]byte{general(nameURI, "example.org")}, [][]byte{general(nameURI, "example.org")})), Constraint},
		{"a minimum of a subtree", bendCA(raw(extNameConstraints, true, tlv(0x30, tlv(0xa0, tlv(0x30, general(nameURI, "example.org"), []byte{0x80, 1, 1}))))), Malformed},
		{"not critical", bendCA(raw(extNameConstraints, false, tlv(0x30, tlv(0xa0, tlv(0x30, general(nameURI, "example.org")))))), Malformed},
		{"constraints on other names leave the URI alone", bendCA(nameConstraints([][]byte{general(nameDNS, "other.example")}, nil)), ""},
		{"a constraint on otherNames refuses them unread", func(t *testing.T, w *world) {
			w.reissue(t, nameConstraints(nil, [][]byte{tlv(0xa0, []byte{6, 1, 42})}))
			w.present(w.issuing.leaf(t, san(general(nameURI, workload), tlv(0xa0, []byte{6, 1, 43}))))
		}, Constraint},
		{"the root's constraint, through an unconstrained CA", func(t *testing.T, w *world) {
			w.root = ca(t, "root", nil, permitURI("other.example"))
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, nil)
		}, Constraint},
		{"a CA below that permits itself more", func(t *testing.T, w *world) {
			w.root = ca(t, "root", nil, permitURI("other.example"))
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, permitURI("example.org", "other.example"))
		}, Constraint},
		{"a self-issued CA does not shield its leaf", func(t *testing.T, w *world) {
			w.root = ca(t, "issuing", nil, permitURI("other.example"))
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, nil)
		}, Constraint},
		{"an IPv4 address dressed as IPv6", func(t *testing.T, w *world) {
			w.reissue(t, nameConstraints(nil, [][]byte{general(nameIP, "\x0a\x00\x00\x00\xff\x00\x00\x00")}))
			w.present(w.issuing.leaf(t, san(general(nameURI, workload), general(nameIP, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01"))))
		}, Constraint},
		{"a host permitted as a DNS name is not permitted as a URI", bendCA(nameConstraints([][]byte{general(nameDNS, "example.org"), general(nameURI, "other.example")}, nil)), Constraint},
		{"each type of name by its own constraints", bendCA(nameConstraints([][]byte{general(nameDNS, "other.example"), general(nameURI, "example.org")}, nil)), ""},
		{"an excluded subtree that does not parse", bendCA(nameConstraints(nil, [][]byte{general(nameDNS, ".example.org")})), Malformed},
		{"an IPv6 name beside IPv4 constraints", func(t *testing.T, w *world) {
			w.reissue(t, nameConstraints(nil, [][]byte{general(nameIP, "\x0a\x00\x00\x00\xff\x00\x00\x00")}))
			w.present(w.issuing.leaf(t, san(general(nameURI, workload), general(nameIP, "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x01"))))
		}, ""},
		{"an IPv4 name where only IPv6 is permitted", func(t *testing.T, w *world) {
			w.reissue(t, nameConstraints([][]byte{general(nameIP, strings.Repeat("\x00", 32))}, nil))
			w.present(w.issuing.leaf(t, san(general(nameURI, workload), general(nameIP, "\x0a\x00\x00\x01"))))
		}, Constraint},
		{"an excluded e-mail address in the subject", bendMail("a@example.org", nameConstraints(nil, [][]byte{general(nameEmail, "example.org")})), Constraint},
		{"another e-mail address in the subject", bendMail("a@other.example", nameConstraints(nil, [][]byte{general(nameEmail, "example.org")})), ""},
		{"an excluded e-mail address in the subject, in another spelling", bendMail("a@example.org.", nameConstraints(nil, [][]byte{general(nameEmail, "example.org")})), Constraint},
		{"an excluded e-mail address in the subject, with a space after it", bendMail("a@example.org ", nameConstraints(nil, [][]byte{general(nameEmail, "example.org")})), Constraint},
		{"an e-mail address in the subject that cannot be read", bendMail(`"a b"@x`, nameConstraints(nil, [][]byte{general(nameEmail, "example.org")})), Constraint},
		{"an excluded directory name", bendCA(nameConstraints(nil, [][]byte{directory("web")})), Constraint},
		{"an excluded directory name in another spelling", bendCA(nameConstraints(nil, [][]byte{directory("  WEB ")})), Constraint},
		{"an excluded directory name of which no spelling is sure", bendCA(nameConstraints(nil, [][]byte{directory("w\u0435b")})), Constraint},
		{"a permitted directory name is compared exactly", bendCA(nameConstraints([][]byte{directory("w\u0435b")}, nil)), Constraint},
		{"a permitted directory name", bendCA(nameConstraints([][]byte{directory("web")}, nil)), ""},
		{"more comparisons with excluded names than allowed", bendMany(nil, excludedHosts), TooComplex},
		{"more comparisons with permitted names than allowed", bendMany(excludedHosts, nil), TooComplex},
		{"a wildcard that may be an excluded name", func(t *testing.T, w *world) {
			w.reissue(t, nameConstraints(nil, [][]byte{general(nameDNS, "bank.example.org")}))
			w.present(w.issuing.leaf(t, san(general(nameURI, workload), general(nameDNS, "*.example.org"))))
		}, Constraint},
	})
}

// TestA28SpellingsThatAreNoConstraint are refused here even if crypto/x509
// comes to accept them.
func TestA28SpellingsThatAreNoConstraint(t *testing.T) {
	for _, base := range []name{
		{nameURI, []byte("10.0.0.1")}, {nameURI, []byte("example.org.")}, {nameURI, []byte("example.org\x00")}, {nameURI, []byte("..example.org")}, {nameURI, []byte("[::1]")},
		{nameURI, []byte("fe80::1%eth0")}, {nameURI, []byte("*.org")}, {nameURI, []byte("exa mple.org")}, {nameURI, []byte("ex\xc3\xa4mple.org")}, {nameURI, []byte("example.org/a")}, {nameURI, []byte("example.org:1")},
		{nameDNS, []byte(".example.org")}, {nameDNS, []byte("*.example.org")}, {nameDNS, []byte("example..org")}, {nameDNS, []byte("-a.org")},
		{nameEmail, []byte("@example.org")}, {nameEmail, []byte("a@*.org")}, {nameEmail, []byte("a@b@c d")},
		{nameIP, []byte("\x0a\x00\x00\x01")}, {nameIP, []byte("\x0a\x00\x00\x00\xff\x00\xff\x00")}, {nameDirectory, []byte("junk")},
	} {
		if _, ok := newSubtree(base); ok {
			t.Errorf("%q is accepted as a constraint on %s names", base.value, base.kind)
		}
	}
}

// bendMail gives the leaf's subject an e-mail address.
func bendMail(address string, constrain func(*x509.Certificate)) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		w.reissue(t, constrain)
		w.present(w.issuing.leaf(t, func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oidEmailAddress, Value: address}}
		}))
	}
}

// directory is the directory name CN=cn.
func directory(cn string) []byte {
	return tlv(0xa4, tlv(0x30, tlv(0x31, tlv(0x30, []byte{6, 3, 0x55, 4, 3}, tlv(0x0c, []byte(cn))))))
}

// excludedHosts are many constraints that no name of bendMany meets.
var excludedHosts = func() (bases [][]byte) {
	for n := range 200 {
		bases = append(bases, general(nameDNS, fmt.Sprintf("h%d.example.net", n)))
	}
	return bases
}()

// bendMany has 200 constraints over 200 names; permitted ones end with a
// constraint that holds, so that only the work can refuse.
func bendMany(permitted, excluded [][]byte) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		if permitted != nil {
			permitted = append(permitted[:len(permitted):len(permitted)], general(nameDNS, "example.org"))
		}
		w.reissue(t, nameConstraints(permitted, excluded))
		names := [][]byte{general(nameURI, workload)}
		for n := range 200 {
			names = append(names, general(nameDNS, fmt.Sprintf("h%d.example.org", n)))
		}
		w.present(w.issuing.leaf(t, san(names...)))
	}
}

// TestURIHosts: what disagrees between parsers has no host, and so satisfies
// no constraint.
func TestURIHosts(t *testing.T) {
	for in, want := range map[string]string{
		"spiffe://example.org/a": "example.org", "spiffe://Example.ORG/a": "example.org", "https://h:8443/x": "h", "spiffe://td_1": "td_1", "s://h?x": "h", "s://h#x": "h",
		"urn:a:b": "", "spiffe:///a": "", "https://u@h/": "", "https://[::1]/": "", "https://[fe80::1%25en0]/": "", "https://10.0.0.1/": "",
		"https://h%2e/": "", "https://h./": "", "https://.h/": "", "https://a..b/": "", "https://h:8a/": "", `https://h\@x/`: "", "https://*.h/": "",
	} {
		if got, ok := uriHost(in); got != want || ok != (want != "") {
			t.Errorf("the host of %q is %q, want %q", in, got, want)
		}
	}
}

// FuzzAnAcceptedIDReadsTheSameEverywhere: what the verifier saw in the raw
// name is what net/url and go-spiffe make of it.
func FuzzAnAcceptedIDReadsTheSameEverywhere(f *testing.F) {
	for _, s := range []string{workload, "spiffe://a/b", "SPIFFE://a/b", "spiffe://a/%62", "spiffe://A/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !validURI([]byte(s)) {
			return
		}
		id, err := spiffeid.FromString(s)
		if err != nil {
			return
		}
		u, err := url.Parse(s)
		if err != nil || u.String() != s || id.String() != s {
			t.Fatalf("%q is %q to net/url (%v) and %q to go-spiffe", s, u, err, id)
		}
		if host, ok := uriHost(s); ok && host != strings.ToLower(id.TrustDomain().Name()) {
			t.Fatalf("the host of %q is %q", s, host)
		}
	})
}
