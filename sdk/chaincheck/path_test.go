package chaincheck

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestA37ARootSpeaksOnlyForItsOwnDomain.
func TestA37ARootSpeaksOnlyForItsOwnDomain(t *testing.T) {
	check(t, []row{
		{"anchored by another trusted domain's root", func(t *testing.T, w *world) {
			w.params.Roots = Roots{domain: {ca(t, "elsewhere", nil, nil).cert}, other: {w.root.cert}}
		}, WrongTrustDomain},
		{"no roots for its domain", func(_ *testing.T, w *world) { w.params.Roots = Roots{other: {w.root.cert}} }, WrongTrustDomain},
		{"an empty bundle for its domain", func(_ *testing.T, w *world) { w.params.Roots[domain] = nil }, WrongTrustDomain},
		{"another root of the same name", func(t *testing.T, w *world) {
			w.params.Roots[domain] = []*x509.Certificate{ca(t, "root", nil, nil).cert}
		}, UnknownCA},
		{"another root of the same name and key identifier", func(t *testing.T, w *world) {
			w.params.Roots[domain] = []*x509.Certificate{ca(t, "root", nil, func(c *x509.Certificate) { c.SubjectKeyId = w.root.cert.SubjectKeyId }).cert}
		}, BadSignature},
		{"the right root beside one of the same name", func(t *testing.T, w *world) {
			w.params.Roots[domain] = []*x509.Certificate{ca(t, "root", nil, nil).cert, w.root.cert}
		}, ""},
		{"one key as root of two domains", func(_ *testing.T, w *world) { w.params.Roots[other] = w.params.Roots[domain] }, ""},
		{"what is wrong in its own domain is not hidden by another's root", func(t *testing.T, w *world) {
			w.params.Roots[other] = w.params.Roots[domain]
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 2, nil, w.leaf))
		}, Revoked},
		{"a subdomain's bundle", func(_ *testing.T, w *world) {
			w.params.Roots = Roots{spiffeid.RequireTrustDomainFromString("a.example.org"): {w.root.cert}}
		}, WrongTrustDomain},
	})
}

// TestA33OnlyACAAnchors: a certificate in the bundle counts by its key and by
// being a CA, never by being there.
func TestA33OnlyACAAnchors(t *testing.T) {
	check(t, []row{
		{"the leaf itself is in the bundle", func(_ *testing.T, w *world) {
			w.params.Chain, w.params.Roots[domain] = w.params.Chain[:1], []*x509.Certificate{w.leaf}
		}, UnknownCA},
		{"a self-signed leaf is in the bundle", func(t *testing.T, w *world) {
			key := newKey(t)
			self := &authority{key: key}
			self.cert = (&authority{cert: &x509.Certificate{Subject: w.leaf.Subject}, key: key}).leafWithKey(t, key, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1}; c.AuthorityKeyId = []byte{1} })
			w.params.Chain, w.params.Roots[domain] = []*x509.Certificate{self.cert}, []*x509.Certificate{self.cert}
		}, BadUsage},
		{"a non-CA of the root's name and key", func(t *testing.T, w *world) {
			plain := caWithKey(t, "root", nil, w.root.key, func(c *x509.Certificate) { c.IsCA = false; c.SubjectKeyId = w.root.cert.SubjectKeyId })
			w.params.Roots[domain] = []*x509.Certificate{plain.cert}
		}, BadUsage},
		{"an intermediate CA as anchor", func(_ *testing.T, w *world) {
			w.params.Chain, w.params.Roots[domain] = w.params.Chain[:1], []*x509.Certificate{w.issuing.cert}
		}, ""},
		{"a leaf that signed another leaf", func(t *testing.T, w *world) {
			key := newKey(t)
			middle := &authority{w.issuing.leafWithKey(t, key, func(c *x509.Certificate) {
				c.SubjectKeyId = []byte{1, 2, 3}
				c.AuthorityKeyId = w.issuing.cert.SubjectKeyId
			}), key}
			w.params.Chain = []*x509.Certificate{middle.leaf(t, func(c *x509.Certificate) { c.Subject.CommonName = "second" }), middle.cert, w.issuing.cert}
		}, BadUsage},
	})
}

func TestWeakKeysAreRefused(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	check(t, []row{
		{"P-224 leaf", func(t *testing.T, w *world) { w.present(w.issuing.leafWithKey(t, p224, nil)) }, WeakKey},
		{"P-384 leaf", func(t *testing.T, w *world) { w.present(w.issuing.leafWithKey(t, p384, nil)) }, ""},
		{"RSA 2048 leaf", func(t *testing.T, w *world) { w.present(w.issuing.leafWithKey(t, rsa2048, nil)) }, ""},
		{"RSA 2048 root", func(t *testing.T, w *world) {
			w.root = caWithKey(t, "root", nil, rsa2048, nil)
			w.params.Roots[domain] = []*x509.Certificate{w.root.cert}
			w.reissue(t, nil)
		}, ""},
		{"P-224 issuing CA", func(t *testing.T, w *world) {
			w.issuing = caWithKey(t, "issuing", w.root, p224, nil)
			w.params.Chain = []*x509.Certificate{w.issuing.leaf(t, nil), w.issuing.cert}
		}, WeakKey},
	})
}

func TestALeafMayNotLiveLongerThanAccepted(t *testing.T) {
	w := newWorld(t)
	w.params.MaxLifetime = 72 * time.Hour
	wantCause(t, w.params, "")
	w.params.MaxLifetime = time.Hour
	wantCause(t, w.params, Lifetime)
}

func TestDepthIsBounded(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	above := w.root
	var between []*x509.Certificate
	for n := range 6 {
		above = ca(t, fmt.Sprint("ca ", n), above, nil)
		between = append(between, above.cert)
		w.params.Chain = append([]*x509.Certificate{above.leaf(t, nil)}, between...)
		for depth, want := range map[int]Cause{0: map[bool]Cause{true: "", false: Constraint}[n+1 <= 5], n + 1: "", n: Constraint, -1: Constraint} {
			if depth == 0 && n == 0 {
				want = "" // zero is the default, 5
			}
			w.params.MaxDepth = depth
			wantCause(t, w.params, want)
		}
	}
}

func TestTheOrderOfIntermediatesDoesNotMatter(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	sub := ca(t, "sub", w.issuing, nil)
	stray := ca(t, "stray", nil, nil)
	w.params.Chain = []*x509.Certificate{sub.leaf(t, nil), stray.cert, w.root.cert, w.issuing.cert, sub.cert, sub.cert}
	if got := len(wantCause(t, w.params, "").Path); got != 4 {
		t.Errorf("the path has %d certificates, want 4", got)
	}
}

func TestAnAlternativePathIsFoundWhenTheFirstFails(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	old := caWithKey(t, "issuing", w.root, w.issuing.key, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	narrow := caWithKey(t, "issuing", w.root, w.issuing.key, permitURI("other.example"))
	w.params.Chain = []*x509.Certificate{w.leaf, old.cert, narrow.cert, w.issuing.cert}
	if path := wantCause(t, w.params, "").Path; path[1] != w.issuing.cert {
		t.Error("the path goes through a CA that may not sign this")
	}
}

func TestACycleOfCrossSignedCAsEnds(t *testing.T) {
	w := newWorld(t)
	w.params.Revocation = Off
	a, b := ca(t, "a", nil, nil), ca(t, "b", nil, nil)
	ab, ba := caWithKey(t, "a", b, a.key, nil), caWithKey(t, "b", a, b.key, nil)
	leaf := a.leaf(t, nil)
	w.params.Chain = []*x509.Certificate{leaf, ab.cert, ba.cert}
	wantCause(t, w.params, UnknownCA)
	w.params.Roots[domain] = []*x509.Certificate{b.cert}
	wantCause(t, w.params, "")
}

// TestA09PathologicalChainsCostBoundedWork: signature checks are what costs;
// they are counted, not timed.
func TestA09PathologicalChainsCostBoundedWork(t *testing.T) {
	w := newWorld(t)
	sameName := func(n int) []*x509.Certificate {
		// One name, one key identifier, many keys: every CA may have signed
		// every other, as far as names tell.
		var certs []*x509.Certificate
		above := ca(t, "x", nil, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} })
		for range n {
			above = ca(t, "x", above, func(c *x509.Certificate) { c.SubjectKeyId = []byte{1} })
			certs = append(certs, above.cert)
		}
		return append([]*x509.Certificate{above.leaf(t, nil)}, certs...)
	}
	chain := sameName(100)
	leaf, refused := factsOf(chain[0])
	if refused != nil {
		t.Fatal(refused)
	}
	s := newSearch(leaf, chain[1:], []*x509.Certificate{w.root.cert}, Params{Usage: Client, Now: now, MaxDepth: 100, Revocation: Off})
	refused = s.run()
	if refused == nil || refused.Cause != TooComplex {
		t.Fatalf("got %v", refused)
	}
	if s.work.Signatures > maxSignatures+1 || s.work.Steps > maxSteps+1 {
		t.Errorf("it took %+v", s.work)
	}
	p := w.params
	p.Chain = chain
	wantCause(t, p, TooComplex)
	p.Chain = append(chain[:1:1], chain[len(chain)-maxPresented+1:]...)
	wantCause(t, p, TooComplex)

	p.Chain = append([]*x509.Certificate{w.leaf, w.issuing.cert}, chain[1:maxPresented]...)
	wantCause(t, p, TooComplex)

	// A bundle of thousands, none of which has the name that is looked for.
	p = w.params
	p.Chain = p.Chain[:1]
	p.Roots = Roots{domain: slices.Repeat([]*x509.Certificate{w.root.cert}, maxSteps+1)}
	wantCause(t, p, TooComplex)
	p = w.params

	var many [][]byte
	for range 10_000 {
		many = append(many, general(nameDNS, "a.example.org"))
	}
	names := []byte{0x30, 0x83, 0, 0, 0}
	for _, n := range many {
		names = append(names, n...)
	}
	size := len(names) - 5
	names[2], names[3], names[4] = byte(size>>16), byte(size>>8), byte(size)
	big := w.issuing.leaf(t, func(c *x509.Certificate) { c.URIs = nil; raw(extSAN, false, names)(c) })
	p.Chain = []*x509.Certificate{big, w.issuing.cert}
	wantCause(t, p, TooComplex)
	if _, err := VerifyLeafRaw([][]byte{big.Raw}, p); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("the large certificate was parsed: %v", err)
	}
}

func TestTheResultExplainsEachLink(t *testing.T) {
	w := newWorld(t)
	result := wantCause(t, w.params, "")
	if result.ID.String() != workload || len(result.Links) != 3 || len(result.Path) != 3 {
		t.Fatalf("got %+v", result)
	}
	for n, want := range []string{`was signed by "CN=issuing"`, `was signed by "CN=root"`, "is a trust anchor"} {
		if got := result.Links[n].String(); !strings.Contains(got, want) {
			t.Errorf("link %d says %q", n, got)
		}
	}
	if got := result.Links[0].String(); !strings.Contains(got, "not revoked by CRL 1, current until") {
		t.Errorf("link 0 says %q", got)
	}
}

func TestRawChains(t *testing.T) {
	w := newWorld(t)
	raw := [][]byte{w.leaf.Raw, w.issuing.cert.Raw}
	if result, err := VerifyLeafRaw(raw, w.params); err != nil || result.ID.String() != workload {
		t.Errorf("got %v, %v", result, err)
	}
	for name, c := range map[string]struct {
		raw  [][]byte
		want Cause
	}{
		"nothing":           {nil, NoCertificate},
		"junk":              {[][]byte{[]byte("junk")}, Malformed},
		"trailing bytes":    {[][]byte{append(append([]byte{}, w.leaf.Raw...), 0)}, Malformed},
		"17 certificates":   {make([][]byte, 17), TooComplex},
		"a junk CA":         {[][]byte{w.leaf.Raw, {0x30, 0}}, Malformed},
		"a huge junk chain": {[][]byte{w.leaf.Raw, make([]byte, maxDER+1)}, TooComplex},
	} {
		_, err := VerifyLeafRaw(c.raw, w.params)
		if e, ok := err.(*Error); !ok || e.Cause != c.want {
			t.Errorf("%s: want %s, got %v", name, c.want, err)
		}
	}
}
