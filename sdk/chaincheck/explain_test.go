package chaincheck

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func refusal(t *testing.T, p Params) *Error {
	t.Helper()
	_, err := Verify(p)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("accepted, or an error of another kind: %v", err)
	}
	return e
}

func TestAnAcceptedChainIsExplainedLinkByLink(t *testing.T) {
	w := newWorld(t)
	w.present(w.issuing.leaf(t, withURL))
	w.params.CRLs = crls(t, w.root.crl(t, 7, nil))
	w.params.Staple = w.issuing.staple(t, w.leaf, by(w.issuing.responder(t, nil)))
	x := wantCause(t, w.params, "").Explain()
	if !x.Accepted || x.ID != workload || len(x.Links) != 3 || x.Links[0].Revocation.Source != SourceStaple || x.Links[1].Revocation.CRLNumber != "7" || !x.Links[2].Anchor || x.Links[2].Revocation.Status != "not_checked" {
		t.Errorf("%+v", x)
	}
	words := x.String()
	for _, want := range []string{
		"accepted: " + workload, "0. ", "was signed by \"CN=issuing\"", "revocation good by the stapled OCSP response of the responder \"CN=OCSP responder\"",
		"1. ", "revocation good by CRL 7", "2. \"CN=root\"", "is a trust anchor",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not in:\n%s", want, words)
		}
	}
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var back Explanation
	if err := json.Unmarshal(raw, &back); err != nil || back.String() != words {
		t.Errorf("%v: %s", err, raw)
	}
	for _, want := range []string{`"accepted":true`, `"source":"staple"`, `"crl_number":"7"`, `"anchor":true`, `"work":{"signatures":`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s is not in %s", want, raw)
		}
	}
	if strings.Contains(string(raw), "revoked_at") || strings.Contains(string(raw), "0001-01-01") {
		t.Errorf("dates that are none: %s", raw)
	}
}

// TestARefusalNamesLinkAndAnchors, for each kind of refusal.
func TestARefusalNamesLinkAndAnchors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		bend    func(*testing.T, *world)
		cause   Cause
		links   int    // of the path as far as it led
		anchors int    // that were tried
		words   string // in the explanation
	}{
		{"no root signed it", func(t *testing.T, w *world) {
			w.params.Roots[domain] = []*x509.Certificate{ca(t, "one", nil, nil).cert, ca(t, "two", nil, nil).cert}
		}, UnknownCA, 2, 2, `root: "CN=two"`},
		{"no intermediate was presented", func(_ *testing.T, w *world) { w.params.Chain = w.params.Chain[:1] }, UnknownCA, 1, 1, "whose issuer was not found"},
		{"the leaf is revoked", func(t *testing.T, w *world) {
			lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 9, nil, w.leaf))
		}, Revoked, 3, 1, "revocation revoked by CRL 9 at 2026-05-04T11:59:00Z (keyCompromise)"},
		{"the issuing CA is denied", func(t *testing.T, w *world) {
			w.params.Denied = denials(t, Denial{SPKI: spkiHash(w.issuing.cert), Reason: "its disk was lost"})
		}, Revoked, 3, 1, "its disk was lost"},
		{"no list", func(_ *testing.T, w *world) { w.params.CRLs = nil }, RevocationUnknown, 3, 1, "revocation unknown: no CRL of"},
		{"the leaf expired", func(_ *testing.T, w *world) { w.params.Now = w.leaf.NotAfter.Add(1e9) }, Expired, 1, 1, "valid 2026-05-04T11:50:00Z to 2026-05-05T12:00:00Z"},
		{"the issuing CA expired", bendCA(func(c *x509.Certificate) { c.NotAfter = now.Add(-1e9) }), Expired, 1, 1, `"CN=issuing"`},
		{"another domain's root", func(t *testing.T, w *world) {
			w.params.Roots = Roots{domain: {ca(t, "elsewhere", nil, nil).cert}, other: {w.root.cert}}
		}, WrongTrustDomain, 3, 1, "other.example"},
		{"no SPIFFE ID", bendLeaf(func(c *x509.Certificate) { c.URIs = nil }), WrongSAN, 0, 0, "no URI name"},
		{"nothing", func(_ *testing.T, w *world) { w.params.Chain = nil }, NoCertificate, 0, 0, "presented no certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.bend(t, w)
			e := refusal(t, w.params)
			x := e.Explain()
			if e.Cause != tt.cause || len(x.Links) != tt.links || len(x.Anchors) != tt.anchors || !strings.Contains(x.String(), tt.words) {
				t.Errorf("%d links, %d anchors:\n%s", len(x.Links), len(x.Anchors), x)
			}
			if _, err := json.Marshal(x); err != nil || !strings.HasPrefix(x.String(), "refused ("+string(tt.cause)+")") {
				t.Errorf("%v %s", err, x)
			}
		})
	}
}

// TestAnExplanationIsBounded, whatever a stranger wrote.
func TestAnExplanationIsBounded(t *testing.T) {
	w := newWorld(t)
	w.present(w.issuing.leaf(t, func(c *x509.Certificate) {
		c.URIs = nil
		c.Subject.CommonName = strings.Repeat("\u202eevil\n", 500)
	}))
	for range 40 {
		w.params.Roots[domain] = append(w.params.Roots[domain], w.root.cert)
	}
	x := refusal(t, w.params).Explain()
	if words := x.String(); len(words) > 8<<10 || strings.Contains(words, "\u202e") || strings.Contains(words, "evil\n") {
		t.Errorf("%d bytes: %.500s", len(words), words)
	}
}

// TestPublicRootsNeverAuthenticateAClient: neither those of the machine, nor
// any that no trust domain has, whatever the certificate says.
func TestPublicRootsNeverAuthenticateAClient(t *testing.T) {
	public := ca(t, "Public Root", nil, nil)
	issuing := ca(t, "Public Issuing", public, nil)
	web := issuing.leaf(t, func(c *x509.Certificate) {
		c.URIs, c.DNSNames = nil, []string{"client.example.com"}
	})
	forged := issuing.leaf(t, nil) // a public CA that was tricked into a SPIFFE ID
	// The machine trusts the root: go asks SSL_CERT_FILE for its roots.
	dir := t.TempDir()
	t.Setenv("SSL_CERT_FILE", writePEM(t, dir, "roots.pem", "CERTIFICATE", public.cert.Raw))
	t.Setenv("SSL_CERT_DIR", dir)
	w := newWorld(t)
	for _, tt := range []struct {
		name  string
		leaf  *x509.Certificate
		roots Roots
		want  Cause
	}{
		{"a web PKI leaf without a SPIFFE ID", web, w.params.Roots, WrongSAN},
		{"a web PKI leaf, and no roots at all", web, nil, WrongSAN},
		{"a SPIFFE ID under a public root", forged, w.params.Roots, UnknownCA},
		{"a SPIFFE ID, and no roots at all", forged, nil, WrongTrustDomain},
		{"a SPIFFE ID, and an empty bundle", forged, Roots{domain: nil}, WrongTrustDomain},
		{"a SPIFFE ID, and the root is of no trust domain", forged, Roots{spiffeid.TrustDomain{}: {public.cert}}, WrongTrustDomain},
		{"a SPIFFE ID, and the root is another domain's", forged, Roots{domain: w.params.Roots[domain], other: {public.cert}}, WrongTrustDomain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, side := range []Usage{Client, Server, Any} {
				r, err := Verify(Params{Chain: []*x509.Certificate{tt.leaf, issuing.cert}, Roots: tt.roots, Usage: side, Revocation: Off, Now: now})
				holdsCause(t, r, err, tt.want)
			}
		})
	}
	// And the way by server name is none for clients.
	for _, side := range []Usage{Client, Any} {
		r, err := VerifyServerName(Params{Chain: []*x509.Certificate{web, issuing.cert}, Usage: side, Revocation: Off, Now: now}, []*x509.Certificate{public.cert}, "client.example.com")
		holdsCause(t, r, err, BadParams)
	}
	v := NewVerifier(VerifierConfig{Usage: Client})
	r, err := v.VerifyServerName(t.Context(), nil, []*x509.Certificate{public.cert}, []*x509.Certificate{web, issuing.cert}, "client.example.com", nil)
	holdsCause(t, r, err, BadParams)
}
