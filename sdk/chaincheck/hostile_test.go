package chaincheck

import (
	"crypto/x509"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What crypto/x509 says of a certificate repeats it, escaped: five bytes for
// one, before anybody is known.
func TestA22ErrorsRepeatLittleOfWhatAStrangerWrote(t *testing.T) {
	w := newWorld(t)
	long := "spiffe://a:" + strings.Repeat("z\x1b", 10_000) + "/b"
	leaf := rawLeaf(t, w.issuing, san(general(nameURI, long)))
	_, err := VerifyLeafRaw([][]byte{leaf}, w.params)
	if err == nil || len(err.Error()) > 1024 || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("%d bytes: %.300q", len(err.Error()), err)
	}

	w.present(w.issuing.leaf(t, nil))
	w.params.Revocation = Prefer
	w.params.CRLs = nil
	w.params.Staple = w.issuing.staple(t, w.params.Chain[0], by(w.issuing.responder(t, nil)), func(r *reply) { r.certs = [][]byte{leaf} })
	r, err := Verify(w.params)
	if err != nil {
		t.Fatal(err)
	}
	if why := r.Links[0].Revocation.Why; len(why) > 1024 || !strings.Contains(why, "does not parse") {
		t.Errorf("a staple: %d bytes: %.300q", len(why), why)
	}
}

func TestNoCertificateWhereOneIsExpectedIsRefused(t *testing.T) {
	w := newWorld(t)
	good := w.params.Chain
	for name, chain := range map[string][]*x509.Certificate{
		"no leaf": {nil}, "a leaf of nothing": {{}}, "no intermediate": {good[0], nil}, "intermediates of nothing": {good[0], {}, nil},
	} {
		p := w.params
		p.Chain = chain
		if _, err := Verify(p); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := NewVerifier(VerifierConfig{Usage: Client}).Verify(t.Context(), &Trust{Roots: p.Roots, CRLs: p.CRLs}, chain, nil); err == nil {
			t.Errorf("%s: accepted by a Verifier", name)
		}
	}
	set, err := NewDenySet([]Denial{{Serial: "1"}, {SPKI: strings.Repeat("ab", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, denied := set.Lookup(spiffeid.ID{}, []*x509.Certificate{{}}); denied {
		t.Error("nothing is denied")
	}
	if r := w.params.CRLs.Lookup(&x509.Certificate{}, w.issuing.cert, now, nil); r.Status == StatusRevoked {
		t.Error("nothing is revoked")
	}
}

func TestADenialOfAWholeTrustDomainIsNotBelievedToDeny(t *testing.T) {
	set, err := NewDenySet([]Denial{{ID: spiffeid.RequireFromString("spiffe://example.org")}})
	if err == nil || set.Len() != 0 || !strings.Contains(err.Error(), "example.org") {
		t.Errorf("%d denials, %v", set.Len(), err)
	}
}
