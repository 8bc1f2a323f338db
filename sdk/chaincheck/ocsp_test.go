package chaincheck

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"
)

// TestA30OCSPAnswersThatDoNotCount: whatever is wrong with an answer, it
// acquits nobody, stapled or fetched; and one that revokes wins.
func TestA30OCSPAnswersThatDoNotCount(t *testing.T) {
	var zero []func(*reply)
	bent := func(b ...func(*reply)) func(*testing.T, *world) []func(*reply) {
		return func(*testing.T, *world) []func(*reply) { return b }
	}
	appoint := func(change func(*x509.Certificate), more ...func(*reply)) func(*testing.T, *world) []func(*reply) {
		return func(t *testing.T, w *world) []func(*reply) {
			return append([]func(*reply){by(w.issuing.responder(t, change))}, more...)
		}
	}
	for _, tt := range []struct {
		name string
		bend func(*testing.T, *world) []func(*reply)
		want Cause
		why  string
	}{
		{"signed by the issuer", bent(zero...), "", ""},
		{"signed by the issuer, named by key", bent(func(r *reply) { r.byKey = true }), "", ""},
		{"the certificate named by SHA-256", bent(func(r *reply) { r.hash = crypto.SHA256 }), "", ""},
		{"among answers for others", bent(func(r *reply) { r.others = 20 }), "", ""},
		{"no nextUpdate, fresh", bent(func(r *reply) { r.next = time.Time{} }), "", ""},
		{"signed by an appointed responder", appoint(nil), "", ""},
		{"signed by an appointed responder, named by key", appoint(nil, func(r *reply) { r.byKey = true }), "", ""},
		{"from a clock four minutes ahead", bent(func(r *reply) { r.this, r.produced = now.Add(4*time.Minute), now.Add(4*time.Minute) }), "", ""},

		{"the responder lacks id-kp-OCSPSigning", appoint(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), RevocationUnknown, "lacks id-kp-OCSPSigning"},
		{"the responder has no extended key usage", appoint(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), RevocationUnknown, "lacks id-kp-OCSPSigning"},
		{"any usage is no appointment", appoint(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }), RevocationUnknown, "lacks id-kp-OCSPSigning"},
		{"the responder's key usage lacks digitalSignature", appoint(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), RevocationUnknown, "digitalSignature"},
		{"the responder is a CA", appoint(func(c *x509.Certificate) { c.IsCA = true }), RevocationUnknown, "is a CA"},
		{"the responder has a critical extension nobody knows", appoint(unknownExtension), RevocationUnknown, "not understood"},
		{"the responder's certificate expired", appoint(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), RevocationUnknown, "expired"},
		{"the responder's certificate is from tomorrow", appoint(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), RevocationUnknown, "has a certificate from"},
		{"the responder has neither nocheck nor a list", appoint(func(c *x509.Certificate) { c.ExtraExtensions = nil }), RevocationUnknown, "id-pkix-ocsp-nocheck"},
		{"the responder was appointed by the root", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){by(w.root.responder(t, nil))}
		}, RevocationUnknown, "not issued by the certificate's own issuer"},
		{"the responder was appointed by another CA of the same name", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){by(ca(t, "issuing", w.root, nil).responder(t, nil))}
		}, RevocationUnknown, "not issued by the certificate's own issuer"},
		{"by another CA of the same name and key identifier", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){by(ca(t, "issuing", w.root, func(c *x509.Certificate) { c.SubjectKeyId = w.issuing.cert.SubjectKeyId }).responder(t, nil))}
		}, RevocationUnknown, "issuer's key did not sign"},
		{"the responder's certificate is missing", appoint(nil, func(r *reply) { r.certs = nil }), RevocationUnknown, "brings no certificate"},
		{"the responder's certificate is another's", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){by(w.issuing.responder(t, func(c *x509.Certificate) { c.Subject.CommonName = "second" })), func(r *reply) {
				r.certs = [][]byte{w.issuing.responder(t, nil).cert.Raw}
			}}
		}, RevocationUnknown, "neither the issuer nor"},
		{"a leaf of the CA answers for itself", func(t *testing.T, w *world) []func(*reply) {
			self := w.issuing.responder(t, func(c *x509.Certificate) {
				c.URIs, c.OCSPServer = w.leaf.URIs, []string{ocspURL}
				c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
			})
			w.present(self.cert)
			return []func(*reply){func(r *reply) { r.child = self.cert }, by(self)}
		}, RevocationUnknown, "vouches for itself"},
		{"signed by the root", func(_ *testing.T, w *world) []func(*reply) {
			return []func(*reply){func(r *reply) { r.signer = w.root }}
		}, RevocationUnknown, "brings no certificate"},
		{"signed by another key of the issuer's name", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){func(r *reply) { r.signer = ca(t, "issuing", w.root, nil) }}
		}, RevocationUnknown, "did not make its signature"},
		{"an altered signature", bent(func(r *reply) { r.badSignature = true }), RevocationUnknown, "did not make its signature"},
		{"a weak signature algorithm", bent(func(r *reply) { r.algorithm = []byte("\x30\x09\x06\x07\x2a\x86\x48\xce\x3d\x04\x01") }), RevocationUnknown, "algorithm is not accepted"},
		{"a signature algorithm for another key", bent(func(r *reply) { r.algorithm = []byte(algorithms[3].der) }), RevocationUnknown, "did not make its signature"},
		{"for another serial", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){func(r *reply) { r.child = w.issuing.leaf(t, nil) }}
		}, RevocationUnknown, "does not answer for serial"},
		{"for the same serial of another issuer", func(t *testing.T, w *world) []func(*reply) {
			return []func(*reply){func(r *reply) { r.issuer = ca(t, "issuing", w.root, nil).cert }}
		}, RevocationUnknown, "does not answer for serial"},
		{"the certificate named by a hash nobody knows", bent(func(r *reply) { r.hashOID = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5} }), RevocationUnknown, "does not answer for serial"},
		{"stale", bent(func(r *reply) { r.next = now.Add(-time.Second) }), RevocationUnknown, "was current until"},
		{"no nextUpdate, an hour old", bent(func(r *reply) { r.this, r.next = now.Add(-time.Hour), time.Time{} }), RevocationUnknown, "was current until"},
		{"from the future", bent(func(r *reply) { r.this = now.Add(6 * time.Minute) }), RevocationUnknown, "is from"},
		{"produced in the future", bent(func(r *reply) { r.produced = now.Add(6 * time.Minute) }), RevocationUnknown, "is from"},
		{"nextUpdate before thisUpdate", bent(func(r *reply) { r.next = r.this.Add(-time.Second) }), RevocationUnknown, "before its thisUpdate"},
		{"unknown", bent(func(r *reply) { r.status = StatusUnknown }), RevocationUnknown, "does not know the certificate"},
		{"tryLater", bent(func(r *reply) { r.outer = 3 }), RevocationUnknown, "tryLater"},
		{"unauthorized", bent(func(r *reply) { r.outer = 6 }), RevocationUnknown, "unauthorized"},
		{"malformedRequest", bent(func(r *reply) { r.outer = 1 }), RevocationUnknown, "malformedRequest"},
		{"internalError", bent(func(r *reply) { r.outer = 2 }), RevocationUnknown, "internalError"},
		{"sigRequired", bent(func(r *reply) { r.outer = 5 }), RevocationUnknown, "sigRequired"},
		{"a status that RFC 6960 does not have", bent(func(r *reply) { r.outer = 4 }), RevocationUnknown, "status 4"},
		{"oversized", bent(func(r *reply) {
			r.extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, maxOCSP)}}
		}), RevocationUnknown, "at most 65536"},
		{"more answers than anyone asks for", bent(func(r *reply) { r.others = maxOCSPAnswers }), RevocationUnknown, "more than 64"},
		{"more certificates than anyone needs", appoint(nil, func(r *reply) {
			for range maxOCSPResponder {
				r.certs = append(r.certs, r.certs[0])
			}
		}), RevocationUnknown, "more than 4"},
		{"a critical extension", bent(func(r *reply) {
			r.extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), RevocationUnknown, "not understood"},
		{"a critical extension of the answer", bent(func(r *reply) {
			r.single = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), RevocationUnknown, "not understood"},
		{"extensions that are understood or need not be", bent(func(r *reply) {
			r.extensions = []pkix.Extension{{Id: oidExtendedRevoc, Critical: true, Value: []byte{5, 0}}, {Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
			r.single = []pkix.Extension{{Id: oidArchiveCutoff, Critical: true, Value: []byte{5, 0}}, {Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		}), "", ""},

		{"revoked", bent(func(r *reply) { r.status = StatusRevoked }), Revoked, "unspecified"},
		{"revoked, by an appointed responder", appoint(nil, func(r *reply) { r.status, r.reason = StatusRevoked, 1 }), Revoked, "keyCompromise"},
		{"revoked, and the answer is stale", bent(func(r *reply) { r.status, r.next = StatusRevoked, now.Add(-time.Second) }), Revoked, ""},
		{"revoked, and the clock was set back", bent(func(r *reply) {
			r.status, r.this, r.produced, r.next = StatusRevoked, now.Add(24*time.Hour), now.Add(24*time.Hour), now.Add(25*time.Hour)
		}), Revoked, ""},
		{"revoked, by nobody that counts", bent(func(r *reply) { r.status, r.badSignature = StatusRevoked, true }), RevocationUnknown, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ocspWorld(t)
			bends := tt.bend(t, w)
			answer := w.issuing.answer(w.leaf, bends...)
			staple, fetched := w.params, w.params
			staple.Staple = answer.der(t)
			fetcher := &responders{}
			fetcher.set(says(t, answer))
			fetched.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
			for how, p := range map[string]Params{"stapled": staple, "fetched": fetched} {
				result, err := Verify(p)
				holdsCause(t, result, err, tt.want)
				if tt.want != "" && !strings.Contains(err.Error(), tt.why) {
					t.Errorf("%s: %v; want %q", how, err, tt.why)
				}
				if tt.want == "" && result.Links[0].Revocation.Status != StatusGood {
					t.Errorf("%s: %s", how, result.Links[0])
				}
				// What acquits nobody does not refuse under Prefer, save a
				// responder that says it does not know the certificate.
				p.Revocation = Prefer
				want := tt.want
				if want == RevocationUnknown && tt.name != "unknown" {
					want = ""
				}
				result, err = Verify(p)
				holdsCause(t, result, err, want)
				p.Revocation = Off
				result, err = Verify(p)
				holdsCause(t, result, err, "")
			}
			if asked := fetcher.asked.Load(); asked != 1 {
				t.Errorf("the responder was asked %d times", asked)
			}
		})
	}
}

// TestA30NoncesTieAnswersToQuestions: RFC 9654.
func TestA30NoncesTieAnswersToQuestions(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mode  NonceMode
		nonce func(sent []byte) []byte // of the answer
		want  Cause
	}{
		{"the one that was sent", NonceSend, func(n []byte) []byte { return n }, ""},
		{"none, where it may be left out", NonceSend, func([]byte) []byte { return nil }, ""},
		{"none, where it is required", NonceRequire, func([]byte) []byte { return nil }, RevocationUnknown},
		{"the one that was sent, where it is required", NonceRequire, func(n []byte) []byte { return n }, ""},
		{"another", NonceSend, func(n []byte) []byte { return append([]byte{n[0] ^ 1}, n[1:]...) }, RevocationUnknown},
		{"a part of it", NonceSend, func(n []byte) []byte { return n[:16] }, RevocationUnknown},
		{"longer than allowed", NonceSend, func(n []byte) []byte { return make([]byte, maxNonce+1) }, RevocationUnknown},
		{"empty", NonceSend, func(n []byte) []byte { return []byte{} }, RevocationUnknown},
		{"none was sent", NonceOff, func([]byte) []byte { return nil }, ""},
		{"one, and none was sent", NonceOff, func([]byte) []byte { return []byte("x") }, RevocationUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ocspWorld(t)
			fetcher := &responders{}
			fetcher.set(func(_ context.Context, q OCSPRequest) ([]byte, error) {
				sent := nonceOf(t, q.DER)
				if (sent != nil) != q.Nonce || q.Nonce != (tt.mode != NonceOff) || q.Nonce && len(sent) != 32 {
					t.Errorf("a nonce of %d bytes was sent", len(sent))
				}
				return w.issuing.staple(t, w.leaf, func(r *reply) { r.nonce = tt.nonce(sent) }), nil
			})
			w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher, Nonce: tt.mode})
			wantCause(t, w.params, tt.want)
		})
	}
}

// TestARevokedAnswerAnywhereWins over whatever else acquits.
func TestARevokedAnswerAnywhereWins(t *testing.T) {
	revoked := func(r *reply) { r.status, r.reason = StatusRevoked, 1 }
	for _, tt := range []struct {
		name                string
		crl, staple, cached int // 0 none, 1 good, 2 revoked
		want                Cause
		source              Source
	}{
		{"a list acquits", 1, 0, 0, "", SourceCRL},
		{"a staple acquits", 0, 1, 0, "", SourceStaple},
		{"OCSP acquits", 0, 0, 1, "", SourceOCSP},
		{"all acquit", 1, 1, 1, "", SourceCRL},
		{"a list revokes", 2, 1, 1, Revoked, SourceCRL},
		{"a staple revokes", 1, 2, 1, Revoked, SourceStaple},
		{"OCSP revokes", 1, 1, 2, Revoked, SourceOCSP},
		{"nothing is here", 0, 0, 0, RevocationUnknown, SourceNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ocspWorld(t)
			fetcher := &responders{}
			o := newOCSP(t, OCSPConfig{Fetcher: fetcher})
			if tt.cached > 0 {
				answer := w.issuing.answer(w.leaf)
				if tt.cached == 2 {
					revoked(answer)
				}
				fetcher.set(says(t, answer))
				first := w.params
				first.OCSP = o
				_, _ = Verify(first)
			}
			w.params.OCSP = o
			switch tt.crl {
			case 1:
				lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 1, nil))
			case 2:
				lists(w, w.root.crl(t, 1, nil), w.issuing.crl(t, 1, nil, w.leaf))
			}
			switch tt.staple {
			case 1:
				w.params.Staple = w.issuing.staple(t, w.leaf)
			case 2:
				w.params.Staple = w.issuing.staple(t, w.leaf, revoked)
			}
			result, err := Verify(w.params)
			holdsCause(t, result, err, tt.want)
			var refusal *Error
			source := SourceNone
			if errors.As(err, &refusal) {
				source = refusal.Revocation.Source
			} else {
				source = result.Links[0].Revocation.Source
			}
			if source != tt.source {
				t.Errorf("%q decided, want %q", source, tt.source)
			}
			if tt.crl == 1 && tt.cached == 0 && fetcher.asked.Load() != 0 {
				t.Error("a responder was asked though a list acquits")
			}
		})
	}
}

// TestTheRespondersOwnRevocation: RFC 6960 4.2.2.2.1.
func TestTheRespondersOwnRevocation(t *testing.T) {
	w := ocspWorld(t)
	checked := w.issuing.responder(t, func(c *x509.Certificate) { c.ExtraExtensions = nil })
	unchecked := w.issuing.responder(t, nil)
	onlyCAs := extension(extIDP, true, tlv(0x30, []byte{0x82, 1, 0xff}))
	for _, tt := range []struct {
		name      string
		responder *authority
		lists     [][]byte
		denied    []Denial
		want      Cause
	}{
		{"a list acquits it", checked, [][]byte{w.issuing.crl(t, 1, nil)}, nil, ""},
		{"a list revokes it", checked, [][]byte{w.issuing.crl(t, 1, nil, checked.cert)}, nil, RevocationUnknown},
		{"a list revokes it, although nobody need look", unchecked, [][]byte{w.issuing.crl(t, 1, nil, unchecked.cert)}, nil, RevocationUnknown},
		{"a list that does not speak of it", checked, [][]byte{w.issuing.crl(t, 1, onlyCAs)}, nil, RevocationUnknown},
		{"it is denied", unchecked, nil, []Denial{{Serial: unchecked.cert.SerialNumber.Text(16)}}, RevocationUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := w.params
			// The leaf itself must not be acquitted by the list.
			p.CRLs = nil
			set := crls(t, tt.lists...)
			denied, err := NewDenySet(tt.denied)
			if err != nil {
				t.Fatal(err)
			}
			response, err := parseOCSP(w.issuing.staple(t, w.leaf, by(tt.responder)))
			if err != nil {
				t.Fatal(err)
			}
			answer, err := response.answerFor(w.leaf, w.issuing.cert, &Work{})
			if err != nil {
				t.Fatal(err)
			}
			r := answer.judge(SourceStaple, w.issuing.cert, now, set, denied, &Work{})
			if good := r.Status == StatusGood; good != (tt.want == "") {
				t.Errorf("%s", r)
			}
		})
	}
}

// TestMustStaple: RFC 7633.
func TestMustStaple(t *testing.T) {
	feature := func(n ...byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			var list []byte
			for _, f := range n {
				list = append(list, 2, 1, f)
			}
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oidTLSFeature, Value: tlv(0x30, list)})
		}
	}
	stapled := func(change func(*x509.Certificate), side Usage, staple func(t *testing.T, w *world) []byte) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			w.params.Usage, w.params.Revocation = side, Prefer
			w.present(w.issuing.leaf(t, func(c *x509.Certificate) { withURL(c); change(c) }))
			if staple != nil {
				w.params.Staple = staple(t, w)
			}
		}
	}
	good := func(t *testing.T, w *world) []byte { return w.issuing.staple(t, w.leaf) }
	check(t, []row{
		{"a good staple", stapled(feature(5), Server, good), ""},
		{"status_request_v2", stapled(feature(17), Server, nil), RevocationUnknown},
		{"another feature", stapled(feature(23), Server, nil), ""},
		{"no staple, though a list acquits", stapled(feature(5), Server, nil), RevocationUnknown},
		{"a stale staple", stapled(feature(5), Server, func(t *testing.T, w *world) []byte {
			return w.issuing.staple(t, w.leaf, func(r *reply) { r.next = now.Add(-time.Second) })
		}), RevocationUnknown},
		{"rubbish", stapled(feature(5), Server, func(*testing.T, *world) []byte { return []byte("rubbish") }), RevocationUnknown},
		{"no staple, but a fetched answer: not for a server", func(t *testing.T, w *world) {
			stapled(feature(5), Server, nil)(t, w)
			fetcher := &responders{}
			fetcher.set(says(t, w.issuing.answer(w.leaf)))
			w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
		}, RevocationUnknown},
		{"a client cannot staple to crypto/tls: a fetched answer counts", func(t *testing.T, w *world) {
			stapled(feature(5), Client, nil)(t, w)
			fetcher := &responders{}
			fetcher.set(says(t, w.issuing.answer(w.leaf)))
			w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
		}, ""},
		{"a client without any answer", stapled(feature(5), Client, nil), RevocationUnknown},
		{"revocation is not looked at", func(t *testing.T, w *world) {
			stapled(feature(5), Server, nil)(t, w)
			w.params.Revocation = Off
		}, ""},
		{"an empty list", bendLeaf(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oidTLSFeature, Value: []byte{0x30, 0}}}
		}), Malformed},
		{"a CA demands it of all below it, the leaf has it not", bendCA(feature(23)), Constraint},
		{"a CA demands it of all below it", func(t *testing.T, w *world) {
			w.reissue(t, feature(23))
			w.present(w.issuing.leaf(t, feature(5, 23)))
			w.params.Staple = w.issuing.staple(t, w.leaf)
		}, ""},
	})
}

// TestOCSPOfXCryptoIsUnderstood: the answers of another implementation.
func TestOCSPOfXCryptoIsUnderstood(t *testing.T) {
	w := ocspWorld(t)
	responder := w.issuing.responder(t, nil)
	for _, tt := range []struct {
		name   string
		signer *authority
		hash   crypto.Hash
		status int
		want   Cause
	}{
		{"good, by the issuer", w.issuing, crypto.SHA1, xocsp.Good, ""},
		{"good, by a responder, SHA-256", responder, crypto.SHA256, xocsp.Good, ""},
		{"revoked", responder, crypto.SHA1, xocsp.Revoked, Revoked},
		{"unknown", w.issuing, crypto.SHA1, xocsp.Unknown, RevocationUnknown},
		{"named by SHA-512, which is not understood", w.issuing, crypto.SHA512, xocsp.Good, RevocationUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			template := xocsp.Response{
				Status: tt.status, SerialNumber: w.leaf.SerialNumber, IssuerHash: tt.hash, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour),
				RevokedAt: now.Add(-time.Hour), RevocationReason: xocsp.Superseded,
			}
			if tt.signer != w.issuing {
				template.Certificate = tt.signer.cert
			}
			der, err := xocsp.CreateResponse(w.issuing.cert, tt.signer.cert, template, tt.signer.key)
			if err != nil {
				t.Fatal(err)
			}
			p := w.params
			// CreateResponse stamps producedAt with the machine's clock.
			p.Now, p.Staple = now, der
			if response, err := parseOCSP(der); err == nil && response.producedAt.After(now) {
				p.Staple = nil
				answer, err := response.answerFor(w.leaf, w.issuing.cert, &Work{})
				if (err == nil) != (tt.hash != crypto.SHA512) {
					t.Fatal(err)
				}
				if err != nil {
					return
				}
				answer.producedAt = now
				r := answer.judge(SourceStaple, w.issuing.cert, now, nil, nil, &Work{})
				if want := map[Cause]Status{"": StatusGood, Revoked: StatusRevoked, RevocationUnknown: StatusUnknown}[tt.want]; r.Status != want {
					t.Fatalf("%s", r)
				}
				return
			}
			result, err := Verify(p)
			holdsCause(t, result, err, tt.want)
		})
	}
	// And our question is understood there.
	der, _, err := ocspRequest(crypto.SHA256, w.leaf, w.issuing.cert, true)
	if err != nil {
		t.Fatal(err)
	}
	request, err := xocsp.ParseRequest(der)
	if err != nil || request.SerialNumber.Cmp(w.leaf.SerialNumber) != 0 || request.HashAlgorithm != crypto.SHA256 {
		t.Fatalf("%+v %v", request, err)
	}
}
