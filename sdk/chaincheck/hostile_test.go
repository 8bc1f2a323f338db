package chaincheck

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"strings"
	"testing"
	"time"

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

// What was let in because nobody could be asked is not let in from memory for
// as long as its certificate lives.
func TestA30AnAcceptedUnknownIsAskedForAgain(t *testing.T) {
	w := newWorld(t)
	w.present(w.issuing.leaf(t, withURL))
	fetcher := &responders{}
	c := newClock()
	ocsp := newOCSP(t, OCSPConfig{Fetcher: fetcher, Now: c.Now})
	v := NewVerifier(VerifierConfig{Usage: Client, Revocation: Prefer, OCSP: ocsp, Now: c.Now})
	trust := &Trust{Roots: w.params.Roots, CRLs: crls(t, w.root.crl(t, 1, nil))}
	if _, err := v.Verify(t.Context(), trust, w.params.Chain, nil); err != nil {
		t.Fatal(err)
	}
	fetcher.set(says(t, w.issuing.answer(w.leaf, func(r *reply) { r.status = StatusRevoked })))
	c.move(unknownHold + time.Second)
	r, err := v.Verify(t.Context(), trust, w.params.Chain, nil)
	holdsCause(t, r, err, Revoked)
}

// Who holds a certificate may send anything after it.
func TestA09GiantChainsAreNotRemembered(t *testing.T) {
	w := newWorld(t)
	v, _, trust := judged(t, w, nil)
	junk := ca(t, "junk", nil, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, maxCachedChain)}}
	})
	if _, err := v.Verify(t.Context(), trust, append(w.params.Chain, junk.cert), nil); err != nil {
		t.Fatal(err)
	}
	if n := v.Stats().Remembered; n != 0 {
		t.Errorf("%d chains are remembered", n)
	}
}

// A denial counts for the CA that signed, whatever the certificate says of it.
func TestADenialOfASerialMeansTheIssuerThatSigned(t *testing.T) {
	w := newWorld(t)
	keyID := hex.EncodeToString(w.issuing.cert.SubjectKeyId)
	silent := *w.leaf
	silent.AuthorityKeyId = nil
	lying := *w.leaf
	lying.AuthorityKeyId = w.root.cert.SubjectKeyId
	for name, leaf := range map[string]*x509.Certificate{"its own": w.leaf, "none": &silent, "another's": &lying} {
		set := denials(t, Denial{Serial: w.leaf.SerialNumber.Text(16), Issuer: keyID})
		if _, denied := set.Lookup(spiffeid.ID{}, []*x509.Certificate{leaf, w.issuing.cert, w.root.cert}); !denied {
			t.Errorf("with %s authority key identifier it is let in", name)
		}
	}
}

// Another CA that happens to have the same key appoints nobody for this one
// (RFC 6960 4.2.2.2).
func TestA30AResponderOfAnotherCAWithTheSameKeyIsNotAppointed(t *testing.T) {
	w := newWorld(t)
	twin := caWithKey(t, "twin", w.root, w.issuing.key, nil)
	w.params.CRLs = crls(t, w.root.crl(t, 1, nil))
	w.params.Staple = w.issuing.staple(t, w.leaf, by(twin.responder(t, nil)))
	wantCause(t, w.params, RevocationUnknown)
}
