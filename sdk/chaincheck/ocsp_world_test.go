package chaincheck

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const ocspURL = "http://ocsp.example.org/"

// reply is an OCSP response to be built by hand: good, current and signed by
// the issuer, unless bent.
type reply struct {
	child, issuer *x509.Certificate // what the CertID names
	hash          crypto.Hash
	hashOID       asn1.ObjectIdentifier // overrides hash's
	status        Status
	reason        int
	this, next    time.Time // next zero: none
	produced      time.Time
	nonce         []byte
	signer        *authority
	byKey         bool
	certs         [][]byte
	extensions    []pkix.Extension // of the response
	single        []pkix.Extension
	outer         int // responseStatus
	algorithm     []byte
	others        int // answers for other serials before this one
	badSignature  bool
}

// answer is the default reply about what issuer signed.
func (a *authority) answer(child *x509.Certificate, bend ...func(*reply)) *reply {
	r := &reply{
		child: child, issuer: a.cert, hash: crypto.SHA1, status: StatusGood, this: now.Add(-time.Minute), next: now.Add(time.Hour),
		produced: now.Add(-time.Minute), signer: a, algorithm: []byte(algorithms[0].der),
	}
	for _, b := range bend {
		b(r)
	}
	return r
}

func (a *authority) staple(t testing.TB, child *x509.Certificate, bend ...func(*reply)) []byte {
	t.Helper()
	return a.answer(child, bend...).der(t)
}

func addExtensions(b *cryptobyte.Builder, list []pkix.Extension) {
	b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, e := range list {
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(e.Id)
					if e.Critical {
						b.AddASN1Boolean(true)
					}
					b.AddASN1OctetString(e.Value)
				})
			}
		})
	})
}

func (r *reply) der(t testing.TB) []byte {
	t.Helper()
	seq := casn1.SEQUENCE
	id, err := newCertID(r.hash, r.child, r.issuer)
	if err != nil {
		t.Fatal(err)
	}
	oid := oidSHA1
	if r.hash == crypto.SHA256 {
		oid = oidSHA256
	}
	if r.hashOID != nil {
		oid = r.hashOID
	}
	addSingle := func(b *cryptobyte.Builder, serial []byte) {
		b.AddASN1(seq, func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1(seq, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid); b.AddASN1NULL() })
				b.AddASN1OctetString(id.nameHash)
				b.AddASN1OctetString(id.keyHash)
				b.AddASN1(casn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
			})
			switch r.status {
			case StatusGood:
				b.AddASN1(implicit(0), func(*cryptobyte.Builder) {})
			case StatusRevoked:
				b.AddASN1(explicit(1), func(b *cryptobyte.Builder) {
					b.AddASN1GeneralizedTime(now.Add(-2 * time.Minute))
					b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(r.reason)) })
				})
			default:
				b.AddASN1(implicit(2), func(*cryptobyte.Builder) {})
			}
			b.AddASN1GeneralizedTime(r.this)
			if !r.next.IsZero() {
				b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(r.next) })
			}
			if len(r.single) > 0 {
				addExtensions(b, r.single)
			}
		})
	}
	var data cryptobyte.Builder
	data.AddASN1(seq, func(b *cryptobyte.Builder) {
		if r.byKey {
			key, err := keyBits(r.signer.cert)
			if err != nil {
				t.Fatal(err)
			}
			b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest(crypto.SHA1, key)) })
		} else {
			b.AddASN1(explicit(1), func(b *cryptobyte.Builder) { b.AddBytes(r.signer.cert.RawSubject) })
		}
		b.AddASN1GeneralizedTime(r.produced)
		b.AddASN1(seq, func(b *cryptobyte.Builder) {
			for n := range r.others {
				addSingle(b, []byte{1, byte(n), 7, 7, 7, 7})
			}
			addSingle(b, id.serial)
		})
		extensions := slices.Clone(r.extensions)
		if r.nonce != nil {
			extensions = append(extensions, pkix.Extension{Id: oidOCSPNonce, Value: tlv(4, r.nonce)})
		}
		if len(extensions) > 0 {
			addExtensions(b, extensions)
		}
	})
	tbs, err := data.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(tbs)
	signature, err := r.signer.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if r.badSignature {
		signature[len(signature)-1] ^= 1
	}
	var b cryptobyte.Builder
	b.AddASN1(seq, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(int64(r.outer))
		if r.outer != 0 {
			return
		}
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
			b.AddASN1(seq, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidOCSPBasic)
				b.AddASN1(casn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(seq, func(b *cryptobyte.Builder) {
						b.AddBytes(tbs)
						b.AddBytes(r.algorithm)
						b.AddASN1BitString(signature)
						if len(r.certs) > 0 {
							b.AddASN1(explicit(0), func(b *cryptobyte.Builder) {
								b.AddASN1(seq, func(b *cryptobyte.Builder) {
									for _, c := range r.certs {
										b.AddBytes(c)
									}
								})
							})
						}
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// responder makes a CA's appointed OCSP responder.
func (a *authority) responder(t testing.TB, change func(*x509.Certificate)) *authority {
	t.Helper()
	key := newKey(t)
	cert := a.leafWithKey(t, key, func(c *x509.Certificate) {
		c.URIs, c.Subject.CommonName = nil, "OCSP responder"
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
		c.ExtraExtensions = []pkix.Extension{{Id: oidOCSPNoCheck, Value: []byte{5, 0}}}
		if change != nil {
			change(c)
		}
	})
	return &authority{cert, key}
}

// by makes a responder sign, and its certificate come along.
func by(responder *authority) func(*reply) {
	return func(r *reply) { r.signer, r.certs = responder, [][]byte{responder.cert.Raw} }
}

// responders is a Fetcher of a test: what it does is set, questions are
// counted and bounded.
type responders struct {
	mu    sync.Mutex
	do    func(ctx context.Context, r OCSPRequest) ([]byte, error)
	asked atomic.Int32
}

func (f *responders) set(do func(ctx context.Context, r OCSPRequest) ([]byte, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = do
}

func (f *responders) Fetch(ctx context.Context, r OCSPRequest) ([]byte, error) {
	f.asked.Add(1)
	f.mu.Lock()
	do := f.do
	f.mu.Unlock()
	if do == nil {
		return nil, errors.New("nobody is there")
	}
	return do(ctx, r)
}

// says makes the responder answer with a reply, its nonce copied.
func says(t testing.TB, r *reply) func(context.Context, OCSPRequest) ([]byte, error) {
	return func(_ context.Context, q OCSPRequest) ([]byte, error) {
		c := *r
		if c.nonce == nil {
			c.nonce = nonceOf(t, q.DER)
		}
		return c.der(t), nil
	}
}

// nonceOf reads a request by other means than those under test.
func nonceOf(t testing.TB, der []byte) []byte {
	t.Helper()
	var request struct {
		TBS struct {
			List       []asn1.RawValue
			Extensions []pkix.Extension `asn1:"explicit,tag:2,optional"`
		}
	}
	if rest, err := asn1.Unmarshal(der, &request); err != nil || len(rest) > 0 || len(request.TBS.List) != 1 {
		t.Fatalf("the request does not parse: %v", err)
	}
	for _, e := range request.TBS.Extensions {
		if e.Id.Equal(oidOCSPNonce) {
			var nonce []byte
			if _, err := asn1.Unmarshal(e.Value, &nonce); err != nil {
				t.Fatal(err)
			}
			return nonce
		}
	}
	return nil
}

// newOCSP is closed at the end of the test. Unless told otherwise it waits for
// longer than a busy machine takes: how long is tested where time is not real.
func newOCSP(t testing.TB, c OCSPConfig) *OCSP {
	t.Helper()
	if c.Now == nil {
		c.Now = func() time.Time { return now }
	}
	if c.Timeout == 0 {
		c.Timeout, c.FetchTimeout = time.Minute, time.Minute
	}
	o := NewOCSP(c)
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// ocspWorld is a world that lives by OCSP: certificates name a responder,
// there is a CRL of the root only.
func ocspWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.present(w.issuing.leaf(t, withURL))
	w.params.CRLs = crls(t, w.root.crl(t, 1, nil))
	return w
}

func withURL(c *x509.Certificate) { c.OCSPServer = []string{ocspURL} }
