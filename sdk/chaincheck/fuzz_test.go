package chaincheck

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
)

// FuzzRawChain: no bytes from a peer panic, and whatever is accepted obeys
// the rules, read back by other means.
func FuzzRawChain(f *testing.F) {
	w := newWorld(f)
	f.Add(w.leaf.Raw, w.issuing.cert.Raw, w.issuing.crl(f, 2, nil, w.leaf))
	f.Add(w.issuing.leaf(f, nil).Raw, w.root.cert.Raw, w.root.crl(f, 2, nil))
	for n, c := range limboCases(f) {
		if n%8 != 0 || len(c.Untrusted) == 0 {
			continue
		}
		leaf, _ := pem.Decode([]byte(c.Peer))
		above, _ := pem.Decode([]byte(c.Untrusted[0]))
		f.Add(leaf.Bytes, above.Bytes, []byte{})
	}
	f.Fuzz(func(t *testing.T, leaf, above, crl []byte) {
		p := w.params
		p.CRLs, _ = NewCRLSet([][]byte{crl})
		p.Revocation = Prefer
		result, err := VerifyLeafRaw([][]byte{leaf, above}, p)
		if err != nil {
			if _, ok := err.(*Error); !ok || result != nil || err.Error() == "" {
				t.Fatalf("a refusal of another kind: %v", err)
			}
			return
		}
		first := result.Path[0]
		if first.IsCA || len(first.URIs) != 1 || first.URIs[0].String() != result.ID.String() || first.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Fatalf("accepted %s", result.Links[0])
		}
		if last := result.Path[len(result.Path)-1]; !last.Equal(w.root.cert) {
			t.Fatal("the path does not end in the root")
		}
	})
}

// FuzzExtensions: the parsers of names, constraints and directory names, on
// bytes that no certificate parser has looked at before.
func FuzzExtensions(f *testing.F) {
	f.Add(tlv(0x30, general(nameURI, workload)), tlv(0x30, tlv(0xa0, tlv(0x30, general(nameURI, "example.org")))))
	f.Add(tlv(0x30, tlv(0xa4, tlv(0x30))), tlv(0x30, tlv(0xa1, tlv(0x30, tlv(0xa4, tlv(0x30))))))
	f.Add(tlv(0x30, general(nameIP, "1234"), general(nameEmail, "a@b.c")), tlv(0x30, tlv(0xa1, tlv(0x30, general(nameIP, "12345678"), general(nameEmail, ".c")))))
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, names, constraints []byte) {
		parsed, err := parseNames(w.leaf, names)
		if err != nil {
			return
		}
		below := &facts{cert: w.leaf, names: parsed}
		_, _ = below.spiffeID()
		c, err := parseConstraints(w.issuing.cert, constraints)
		if err != nil {
			return
		}
		work := Work{}
		refused := c.check(&facts{cert: w.issuing.cert}, below, &work)
		if refused == nil && work.Comparisons > maxComparisons {
			t.Fatal("accepted beyond the work allowed")
		}
		// An excluded subtree that certainly contains a name excludes it.
		for _, n := range parsed {
			p, ok := prepare(n)
			if !ok {
				continue
			}
			for i := range c.excluded {
				if tree := &c.excluded[i]; tree.kind == n.kind && tree.contains(&p) && (!tree.excludes(&p) || refused == nil) {
					t.Fatalf("%q is in the excluded subtree %q and was accepted", n.value, tree.text)
				}
			}
		}
	})
}

// FuzzCRL: lists come from a store or a socket; entries agree with what
// crypto/x509 reads.
func FuzzCRL(f *testing.F) {
	w := newWorld(f)
	f.Add(w.issuing.crl(f, 2, nil, w.leaf))
	f.Add(w.issuing.crl(f, 2, extension(extIDP, true, tlv(0x30, []byte{0x81, 1, 0xff}))))
	f.Fuzz(func(t *testing.T, der []byte) {
		set, err := NewCRLSet([][]byte{der})
		if set == nil {
			t.Fatal("no set")
		}
		_ = set.Lookup(w.leaf, w.issuing.cert, now, nil).String()
		if err != nil {
			return
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatalf("accepted what does not parse: %v", err)
		}
		for _, entry := range list.RevokedCertificateEntries {
			if entry.SerialNumber.Sign() <= 0 || entry.SerialNumber.BitLen() > 160 {
				continue
			}
			for _, lists := range set.byIssuer {
				if r := lists[0].decide(&x509.Certificate{SerialNumber: entry.SerialNumber}, now); r.Status != StatusRevoked {
					t.Fatalf("serial %x of the list is %s", entry.SerialNumber, r)
				}
			}
		}
	})
}

// FuzzOCSPResponse: responses come from a peer or from the network. Whatever
// counts was signed by whom we say.
func FuzzOCSPResponse(f *testing.F) {
	w := ocspWorld(f)
	responder := w.issuing.responder(f, nil)
	f.Add(w.issuing.staple(f, w.leaf))
	f.Add(w.issuing.staple(f, w.leaf, by(responder), func(r *reply) { r.byKey, r.hash, r.others, r.nonce = true, crypto.SHA256, 2, []byte("nonce") }))
	f.Add(w.issuing.staple(f, w.leaf, func(r *reply) { r.status, r.reason = StatusRevoked, 1 }))
	f.Add(w.issuing.staple(f, w.leaf, func(r *reply) { r.outer = 3 }))
	f.Add(w.issuing.staple(f, w.leaf, func(r *reply) {
		r.single = []pkix.Extension{{Id: oidArchiveCutoff, Critical: true, Value: []byte{5, 0}}}
	}))
	// Signatures of seeds differ from run to run, so the property is told from
	// the parsed response, by the standard library's own reading of it.
	f.Fuzz(func(t *testing.T, der []byte) {
		response, err := parseOCSP(der)
		if err != nil {
			if err.Error() == "" {
				t.Fatal("a refusal without a reason")
			}
			return
		}
		work := Work{}
		answer, err := response.answerFor(w.leaf, w.issuing.cert, &work)
		if work.Signatures > 2*maxOCSPResponder {
			t.Fatalf("%d signatures were checked", work.Signatures)
		}
		if err != nil {
			return
		}
		signer := w.issuing.cert
		if answer.responder != nil {
			signer = answer.responder
			if signer.CheckSignatureFrom(w.issuing.cert) != nil {
				t.Fatal("the responder was not appointed")
			}
		}
		if signer.CheckSignature(response.algorithm, response.tbs, response.signature) != nil {
			t.Fatal("an answer counts that nobody signed")
		}
		_ = answer.judge(SourceStaple, w.issuing.cert, now, nil, nil, &work).String()
	})
}

// FuzzStapledResponse: any bytes as staple neither panic nor acquit more than
// the genuine one.
func FuzzStapledResponse(f *testing.F) {
	w := ocspWorld(f)
	f.Add(w.issuing.staple(f, w.leaf))
	f.Fuzz(func(t *testing.T, der []byte) {
		p := w.params
		p.Staple = der
		result, err := Verify(p)
		if err == nil && result.Links[0].Revocation.Source != SourceStaple {
			t.Fatalf("%s", result.Links[0])
		}
	})
}
