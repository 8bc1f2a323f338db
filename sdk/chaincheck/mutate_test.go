package chaincheck

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// tbs is a TBSCertificate in pieces, each in DER, so that it can be bent in
// ways that no library signs.
type tbs struct {
	version, serial, algorithm, issuer, validity, subject, spki []byte
	unique                                                      []byte // issuer and subject unique IDs
	extensions                                                  []pkix.Extension
	bare                                                        bool // no extensions element

	outer   []byte // signatureAlgorithm beside the signature
	signer  crypto.Signer
	tail    []byte // after the certificate
	flip    int    // bit of the signed bytes, flipped after signing; -1 none
	badSign bool
}

// takeApart reads a certificate that this test made.
func takeApart(t testing.TB, cert *x509.Certificate, signer crypto.Signer) *tbs {
	t.Helper()
	input := cryptobyte.String(cert.RawTBSCertificate)
	var seq, version, serial, algorithm, issuer, validity, subject, spki cryptobyte.String
	ok := input.ReadASN1(&seq, casn1.SEQUENCE) && seq.ReadASN1Element(&version, explicit(0)) && seq.ReadASN1Element(&serial, casn1.INTEGER) &&
		seq.ReadASN1Element(&algorithm, casn1.SEQUENCE) && seq.ReadASN1Element(&issuer, casn1.SEQUENCE) && seq.ReadASN1Element(&validity, casn1.SEQUENCE) &&
		seq.ReadASN1Element(&subject, casn1.SEQUENCE) && seq.ReadASN1Element(&spki, casn1.SEQUENCE)
	if !ok {
		t.Fatal("a certificate of this test does not parse")
	}
	return &tbs{
		version: version, serial: serial, algorithm: algorithm, issuer: issuer, validity: validity, subject: subject, spki: spki,
		extensions: slices.Clone(cert.Extensions), outer: algorithm, signer: signer, flip: -1,
	}
}

// build signs and puts the certificate together.
func (c *tbs) build(t testing.TB) []byte {
	t.Helper()
	parts := [][]byte{c.version, c.serial, c.algorithm, c.issuer, c.validity, c.subject, c.spki, c.unique}
	if !c.bare {
		var list [][]byte
		for _, e := range c.extensions {
			oid, err := asn1.Marshal(e.Id)
			if err != nil {
				t.Fatal(err)
			}
			critical := []byte(nil)
			if e.Critical {
				critical = []byte{1, 1, 0xff}
			}
			list = append(list, tlv(0x30, oid, critical, tlv(4, e.Value)))
		}
		parts = append(parts, tlv(0xa3, tlv(0x30, list...)))
	}
	signed := tlv(0x30, parts...)
	var signature []byte
	var err error
	if key, ok := c.signer.(ed25519.PrivateKey); ok {
		signature = ed25519.Sign(key, signed)
	} else {
		sum := sha256.Sum256(signed)
		signature, err = c.signer.Sign(cryptorand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.badSign {
		signature[len(signature)-1] ^= 1
	}
	if c.flip >= 0 {
		signed = slices.Clone(signed)
		at := c.flip % (len(signed) * 8)
		signed[at/8] ^= 1 << (at % 8)
	}
	return append(tlv(0x30, signed, c.outer, tlv(3, []byte{0}, signature)), c.tail...)
}

func (c *tbs) find(id int) int {
	return slices.IndexFunc(c.extensions, func(e pkix.Extension) bool { return arc(e.Id) == id })
}

// put replaces or adds an extension of 2.5.29.
func (c *tbs) put(id int, critical bool, value []byte) {
	e := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, id}, Critical: critical, Value: value}
	if i := c.find(id); i >= 0 {
		c.extensions[i] = e
	} else {
		c.extensions = append(c.extensions, e)
	}
}

func instant(tag byte, at time.Time) []byte {
	layout := "060102150405Z"
	if tag == 24 {
		layout = "20060102150405Z"
	}
	return tlv(tag, []byte(at.UTC().Format(layout)))
}

// otherKeys are keys that certificates are given instead of their own.
var otherKeys = sync.OnceValue(func() map[string]crypto.Signer {
	keys := map[string]crypto.Signer{}
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys[curve.Params().Name], _ = ecdsa.GenerateKey(curve, cryptorand.Reader)
	}
	_, keys["Ed25519"], _ = ed25519.GenerateKey(cryptorand.Reader)
	for _, bits := range []int{1024, 2048} {
		keys[fmt.Sprintf("RSA-%d", bits)], _ = rsa.GenerateKey(cryptorand.Reader, bits)
	}
	return keys
})

// mutation bends one certificate. isCA tells which kind it is.
type mutation struct {
	name string
	bend func(r *rand.Rand, c *tbs, isCA bool)
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func nameOf(rdns ...[]byte) []byte { return tlv(0x30, rdns...) }

func commonName(tag byte, value string) []byte {
	return tlv(0x31, tlv(0x30, []byte{6, 3, 0x55, 4, 3}, tlv(tag, []byte(value))))
}

// mutations are what an attacker, or a careless CA, may do to a certificate.
// Everything is signed again by the right key unless the name says otherwise.
var mutations = []mutation{
	{"nothing", func(*rand.Rand, *tbs, bool) {}},
	{"an extension left out", func(r *rand.Rand, c *tbs, _ bool) {
		i := r.IntN(len(c.extensions))
		c.extensions = slices.Delete(c.extensions, i, i+1)
	}},
	{"all extensions left out", func(r *rand.Rand, c *tbs, _ bool) {
		c.extensions, c.bare = nil, r.IntN(2) == 0
	}},
	{"criticality turned", func(r *rand.Rand, c *tbs, _ bool) {
		e := &c.extensions[r.IntN(len(c.extensions))]
		e.Critical = !e.Critical
	}},
	{"an extension twice", func(r *rand.Rand, c *tbs, _ bool) {
		c.extensions = append(c.extensions, c.extensions[r.IntN(len(c.extensions))])
	}},
	{"extensions in another order", func(r *rand.Rand, c *tbs, _ bool) {
		r.Shuffle(len(c.extensions), func(i, j int) { c.extensions[i], c.extensions[j] = c.extensions[j], c.extensions[i] })
	}},
	{"an extension's value bent", func(r *rand.Rand, c *tbs, _ bool) {
		e := &c.extensions[r.IntN(len(c.extensions))]
		v := slices.Clone(e.Value)
		switch r.IntN(4) {
		case 0:
			v = v[:r.IntN(len(v)+1)]
		case 1:
			v = append(v, 0)[:max(len(v), 1)]
			v[r.IntN(len(v))] ^= 1 << r.IntN(8)
		case 2:
			v = append(v, 0)
		case 3:
			v = []byte{0x30, 0}
		}
		e.Value = v
	}},
	{"an extension nobody knows", func(r *rand.Rand, c *tbs, _ bool) {
		c.extensions = append(c.extensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 55738, 666, 1}, Critical: r.IntN(2) == 0, Value: []byte{5, 0}})
	}},
	{"basic constraints", func(r *rand.Rand, c *tbs, _ bool) {
		c.put(extBasicConstraints, r.IntN(4) > 0, pick(r,
			tlv(0x30), tlv(0x30, []byte{1, 1, 0xff}), tlv(0x30, []byte{1, 1, 0xff, 2, 1, 0}), tlv(0x30, []byte{1, 1, 0xff, 2, 1, 1}),
			tlv(0x30, []byte{2, 1, 0}), tlv(0x30, []byte{1, 1, 0xff, 2, 1, 0xff}), tlv(0x30, []byte{1, 1, 0}), tlv(0x30, []byte{1, 1, 1})))
	}},
	{"key usage", func(r *rand.Rand, c *tbs, _ bool) {
		c.put(extKeyUsage, r.IntN(4) > 0, pick(r,
			[]byte{3, 2, byte(r.IntN(8)), byte(r.Uint32())}, []byte{3, 2, 7, 0x80}, []byte{3, 2, 1, 6}, []byte{3, 2, 2, 4}, []byte{3, 2, 1, 2},
			[]byte{3, 1, 0}, []byte{3, 3, 7, 0x86, 0x80}))
	}},
	{"extended key usage", func(r *rand.Rand, c *tbs, _ bool) {
		kp := func(n byte) []byte { return []byte{6, 8, 0x2b, 6, 1, 5, 5, 7, 3, n} }
		any := []byte{6, 4, 0x55, 0x1d, 0x25, 0}
		c.put(extEKU, r.IntN(4) == 0, tlv(0x30, pick(r,
			[][]byte{kp(1)}, [][]byte{kp(2)}, [][]byte{kp(1), kp(2)}, [][]byte{any}, [][]byte{kp(4)}, [][]byte{kp(9)}, [][]byte{kp(2), any}, [][]byte{kp(8)}, nil)...))
	}},
	{"subject alternative names", func(r *rand.Rand, c *tbs, _ bool) {
		id := general(nameURI, workload)
		c.put(extSAN, r.IntN(3) == 0, tlv(0x30, pick(r,
			[][]byte{id}, [][]byte{id, general(nameDNS, "web.example.org")}, [][]byte{id, general(nameDNS, "*.example.org")}, [][]byte{id, general(nameDNS, "a_b.example.org")},
			[][]byte{id, id}, [][]byte{id, general(nameURI, "https://x/")}, [][]byte{general(nameDNS, "web.example.org")}, [][]byte{general(nameURI, "spiffe://other.example/a")},
			[][]byte{id, general(nameIP, "\x0a\x00\x00\x01")}, [][]byte{id, general(nameIP, "\x0a\x00\x00")}, [][]byte{id, general(nameEmail, "a@b.example")}, [][]byte{id, general(nameEmail, "a")},
			[][]byte{id, tlv(0xa4, nameOf(commonName(12, "x")))}, [][]byte{id, general(nameRID, "\x2a\x03")}, [][]byte{general(nameURI, "spiffe://example.org")}, nil,
			[][]byte{id, general(nameDNS, "")}, [][]byte{id, general(nameDNS, "web.example.org\x00.evil")}, [][]byte{id, general(nameURI, "relative/path")})...))
	}},
	{"name constraints", func(r *rand.Rand, c *tbs, _ bool) {
		base := pick(r,
			general(nameURI, "example.org"), general(nameURI, ".example.org"), general(nameURI, "other.example"), general(nameDNS, "example.org"), general(nameDNS, "other.example"),
			general(nameDNS, ""), general(nameEmail, "b.example"), general(nameIP, "\x0a\x00\x00\x00\xff\x00\x00\x00"), general(nameIP, "\x0a\x00\x00\x00"), tlv(0xa4, nameOf(commonName(12, "web"))),
			tlv(0xa4, nameOf()), general(nameRID, "\x2a\x03"), general(nameURI, "EXAMPLE.ORG"))
		side := byte(0xa0 + r.IntN(2))
		c.put(extNameConstraints, r.IntN(4) > 0, tlv(0x30, tlv(side, tlv(0x30, base))))
	}},
	{"policies", func(r *rand.Rand, c *tbs, _ bool) {
		policy := tlv(0x30, []byte{6, 3, 0x2a, 3, 4})
		switch r.IntN(4) {
		case 0:
			c.put(extPolicies, r.IntN(2) == 0, tlv(0x30, policy))
		case 1:
			c.put(extPolicies, false, tlv(0x30, policy, policy))
		case 2:
			c.put(extPolicyConstraints, true, tlv(0x30, []byte{0x80, 1, 0}))
		case 3:
			c.put(extInhibitAnyPolicy, true, []byte{2, 1, 0})
		}
	}},
	{"key identifiers", func(r *rand.Rand, c *tbs, _ bool) {
		switch r.IntN(6) {
		case 5: // right by key, wrongly by issuer and serial
			if i := c.find(extAKI); i >= 0 && len(c.extensions[i].Value) > 2 {
				key := c.extensions[i].Value[2:]
				c.put(extAKI, false, tlv(0x30, key, tlv(0xa1, tlv(0xa4, nameOf(commonName(12, "nobody")))), tlv(0x82, []byte{7})))
			}
		case 0:
			c.put(extAKI, false, tlv(0x30, tlv(0x80, []byte{1, 2, 3, 4})))
		case 1:
			c.put(extAKI, false, tlv(0x30))
		case 2:
			c.put(extSKI, false, tlv(4, []byte{1, 2, 3, 4}))
		case 3:
			c.put(extSKI, false, tlv(4))
		case 4: // by issuer and serial, wrongly
			c.put(extAKI, false, tlv(0x30, tlv(0xa1, tlv(0xa4, nameOf(commonName(12, "nobody")))), tlv(0x82, []byte{7})))
		}
	}},
	{"TLS features", func(r *rand.Rand, c *tbs, _ bool) {
		c.extensions = append(c.extensions, pkix.Extension{Id: oidTLSFeature, Value: pick(r, tlv(0x30, []byte{2, 1, 5}), tlv(0x30, []byte{2, 1, 23}), tlv(0x30))})
	}},
	{"validity", func(r *rand.Rand, c *tbs, _ bool) {
		day := 24 * time.Hour
		c.validity = tlv(0x30, pick(r,
			[][]byte{instant(23, now.Add(-2*day)), instant(23, now.Add(-day))}, [][]byte{instant(23, now.Add(day)), instant(23, now.Add(2*day))},
			[][]byte{instant(23, now.Add(day)), instant(23, now.Add(-day))}, [][]byte{instant(23, now), instant(23, now)}, [][]byte{instant(24, now.Add(-day)), instant(24, now.Add(day))},
			[][]byte{instant(23, now.Add(-day)), instant(24, time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC))}, [][]byte{tlv(23, []byte("2601010000Z")), instant(23, now.Add(day))},
			[][]byte{instant(23, now.Add(-day)), tlv(23, []byte("260601000000+0000"))}, [][]byte{instant(23, now.Add(-day)), tlv(24, []byte("99991231235959Z"))})...)
	}},
	{"serial number", func(r *rand.Rand, c *tbs, _ bool) {
		c.serial = pick(r, []byte{2, 1, 0}, []byte{2, 1, 0x80}, tlv(2, slices.Repeat([]byte{0x7f}, 20)), tlv(2, slices.Repeat([]byte{0x7f}, 21)), []byte{2, 2, 0, 1}, []byte{2, 0})
	}},
	{"version", func(r *rand.Rand, c *tbs, _ bool) {
		c.version = pick(r, nil, []byte{0xa0, 3, 2, 1, 0}, []byte{0xa0, 3, 2, 1, 1}, []byte{0xa0, 3, 2, 1, 3})
	}},
	{"unique identifiers", func(_ *rand.Rand, c *tbs, _ bool) { c.unique = []byte{0x81, 2, 0, 1, 0x82, 2, 0, 1} }},
	{"subject", func(r *rand.Rand, c *tbs, _ bool) {
		c.subject = pick(r, nameOf(), nameOf(commonName(12, "somebody else")), nameOf(commonName(12, "ISSUING")), nameOf(commonName(22, "issuing")), nameOf(commonName(12, " issuing ")),
			nameOf(commonName(12, "issuing"), commonName(12, "second")), nameOf(commonName(30, "\x00w\x00e\x00b")), nameOf(commonName(19, "b\x00d")))
	}},
	{"issuer", func(r *rand.Rand, c *tbs, _ bool) {
		c.issuer = pick(r, nameOf(), nameOf(commonName(12, "root")), nameOf(commonName(12, "issuing")), nameOf(commonName(12, "ISSUING")), nameOf(commonName(22, "issuing")), nameOf(commonName(12, "nobody")))
	}},
	{"key", func(r *rand.Rand, c *tbs, _ bool) {
		kinds := []string{"P-224", "P-256", "P-384", "P-521", "Ed25519", "RSA-1024", "RSA-2048"}
		der, _ := x509.MarshalPKIXPublicKey(otherKeys()[pick(r, kinds...)].Public())
		if der != nil {
			c.spki = der
		}
	}},
	{"signature algorithm", func(r *rand.Rand, c *tbs, _ bool) {
		other := pick(r, "\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01", algorithms[1].der, algorithms[3].der, algorithms[4].der, "\x30\x0c\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x05\x00")
		switch r.IntN(3) {
		case 0:
			c.algorithm = []byte(other)
		case 1:
			c.outer = []byte(other)
		case 2:
			c.algorithm, c.outer = []byte(other), []byte(other)
		}
	}},
	{"signed by another key", func(r *rand.Rand, c *tbs, _ bool) { c.signer = otherKeys()["P-256"] }},
	{"a broken signature", func(_ *rand.Rand, c *tbs, _ bool) { c.badSign = true }},
	{"a bit turned after signing", func(r *rand.Rand, c *tbs, _ bool) { c.flip = r.IntN(1 << 16) }},
	{"bytes after the certificate", func(_ *rand.Rand, c *tbs, _ bool) { c.tail = []byte{0, 0} }},
}

// mutant is a chain with its lists, bent.
type mutant struct {
	what              string
	leaf, issuing     []byte
	root              []byte
	rootCRL, issueCRL []byte
}

// breed bends one good chain in one or two ways.
func breed(t testing.TB, r *rand.Rand, w *world) mutant {
	t.Helper()
	parts := []*tbs{takeApart(t, w.leaf, w.issuing.key), takeApart(t, w.issuing.cert, w.root.key), takeApart(t, w.root.cert, w.root.key)}
	names := []string{"leaf", "issuing CA", "root"}
	var what []string
	for range 1 + r.IntN(4)/3 {
		target := pick(r, 0, 0, 0, 1, 1, 1, 2)
		m := mutations[r.IntN(len(mutations))]
		if len(parts[target].extensions) == 0 {
			continue // nothing is left to bend
		}
		m.bend(r, parts[target], target > 0)
		what = append(what, names[target]+": "+m.name)
	}
	if r.IntN(8) == 0 { // issuers swapped
		what = append(what, "leaf: issued by the root")
		parts[0].issuer, parts[0].signer = parts[2].subject, w.root.key
		if r.IntN(2) == 0 {
			parts[0].put(extAKI, false, tlv(0x30, tlv(0x80, w.root.cert.SubjectKeyId)))
		}
	}
	m := mutant{leaf: parts[0].build(t), issuing: parts[1].build(t), root: parts[2].build(t)}
	m.rootCRL, m.issueCRL = w.root.crl(t, 1, nil), w.issuing.crl(t, 1, nil)
	switch r.IntN(16) {
	case 0:
		what = append(what, "no list of the issuing CA")
		m.issueCRL = nil
	case 1:
		what = append(what, "the leaf is revoked")
		m.issueCRL = w.issuing.crl(t, 1, nil, w.leaf)
	case 2:
		what = append(what, "the issuing CA is revoked")
		m.rootCRL = w.root.crl(t, 1, nil, w.issuing.cert)
	case 3:
		what = append(what, "an expired list")
		m.issueCRL = w.issuing.crl(t, 1, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-30 * time.Second) })
	case 4:
		what = append(what, "a list signed by another key")
		m.issueCRL = (&authority{w.issuing.cert, otherKeys()["P-256"]}).crlUnchecked(t)
	case 5:
		what = append(what, "a list with a critical extension nobody knows")
		m.issueCRL = w.issuing.crl(t, 1, extension(99, true, []byte{5, 0}))
	case 6:
		what = append(what, "a list of CA certificates alone")
		m.issueCRL = w.issuing.crl(t, 1, extension(extIDP, true, tlv(0x30, []byte{0x82, 1, 0xff})))
	case 7:
		what = append(what, "a list from tomorrow")
		m.issueCRL = w.issuing.crl(t, 1, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = now.Add(24*time.Hour), now.Add(48*time.Hour)
		})
	}
	m.what = strings.Join(what, "; ")
	return m
}

// crlUnchecked signs a list with a key that is not the certificate's.
func (a *authority) crlUnchecked(t testing.TB) []byte {
	t.Helper()
	cert := *a.cert
	cert.PublicKey = a.key.Public()
	der, err := x509.CreateRevocationList(cryptorand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}, &cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
