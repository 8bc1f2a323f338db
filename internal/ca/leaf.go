package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// leaf is what differs between certificates.
type leaf struct {
	profile             Profile
	serial              *big.Int
	notBefore, notAfter time.Time
	uri                 string
	dns                 []string
	ips                 []netip.Addr
	ski                 []byte
	spki                []byte // SubjectPublicKeyInfo
}

// form writes leaf certificates of one issuer: what is the same in all of
// them is encoded once. The profile is that of SPIFFE X509-SVID: one URI SAN,
// no CA, critical key usage digitalSignature; the subject means nothing.
type form struct {
	key       crypto.Signer
	public    *ecdsa.PublicKey
	hash      crypto.Hash
	algorithm []byte // AlgorithmIdentifier
	issuer    []byte // Name
	subject   []byte // Name
	authority []byte // authorityKeyIdentifier extension
}

const leafKeyUsage = x509.KeyUsageDigitalSignature

var (
	extKeyUsage = map[Profile][]x509.ExtKeyUsage{
		ProfileWorkload: {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ProfileAgent:    {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ProfileServer:   {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		ProfileOperator: {x509.ExtKeyUsageClientAuth},
	}

	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidOrganization    = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidServerAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 1}
	oidClientAuth      = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 2}
)

func newForm(issuer *x509.Certificate, key crypto.Signer) (*form, error) {
	public, ok := issuer.PublicKey.(*ecdsa.PublicKey)
	if !ok || len(issuer.SubjectKeyId) == 0 {
		return nil, fmt.Errorf("the issuer %s has no ECDSA key, or no key id", issuer.Subject)
	}
	f := &form{key: key, public: public, hash: crypto.SHA256, issuer: issuer.RawSubject}
	algorithm := oidECDSAWithSHA256
	if public.Curve == elliptic.P384() {
		algorithm, f.hash = oidECDSAWithSHA384, crypto.SHA384
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(algorithm) })
	var subject cryptobyte.Builder
	subject.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidOrganization)
				b.AddASN1(cbasn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte("Legation")) })
			})
		})
	})
	var authority cryptobyte.Builder
	addExtension(&authority, oidAuthorityKeyID, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(issuer.SubjectKeyId) })
		})
	})
	var errs [3]error
	f.algorithm, errs[0] = b.Bytes()
	f.subject, errs[1] = subject.Bytes()
	f.authority, errs[2] = authority.Bytes()
	return f, errors.Join(errs[:]...)
}

// sign writes and signs a certificate (RFC 5280 4.1), and verifies the
// signature with the issuer's certified key, not with what signed.
func (f *form) sign(l *leaf) ([]byte, error) {
	var tbs cryptobyte.Builder
	tbs.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // v3
		b.AddASN1BigInt(l.serial)
		b.AddBytes(f.algorithm)
		b.AddBytes(f.issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, l.notBefore)
			addTime(b, l.notAfter)
		})
		b.AddBytes(f.subject)
		b.AddBytes(l.spki)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { f.addExtensions(b, l) })
		})
	})
	body, err := tbs.Bytes()
	if err != nil {
		return nil, err
	}
	digest := f.digest(body)
	signature, err := f.key.Sign(rand.Reader, digest, f.hash)
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(f.public, digest, signature) {
		return nil, errors.New("the signature does not verify with the issuer's key")
	}
	out := cryptobyte.NewBuilder(make([]byte, 0, len(body)+len(signature)+32))
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(body)
		b.AddBytes(f.algorithm)
		b.AddASN1BitString(signature)
	})
	return out.Bytes()
}

func (f *form) digest(body []byte) []byte {
	if f.hash == crypto.SHA384 {
		sum := sha512.Sum384(body)
		return sum[:]
	}
	sum := sha256.Sum256(body)
	return sum[:]
}

func (f *form) addExtensions(b *cryptobyte.Builder, l *leaf) {
	// digitalSignature is bit 0: one byte, seven bits unused.
	addCritical(b, oidKeyUsage, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddBytes([]byte{7, 0x80}) })
	})
	addExtension(b, oidExtKeyUsage, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, usage := range extKeyUsage[l.profile] {
				if usage == x509.ExtKeyUsageServerAuth {
					b.AddASN1ObjectIdentifier(oidServerAuth)
				} else {
					b.AddASN1ObjectIdentifier(oidClientAuth)
				}
			}
		})
	})
	addCritical(b, oidBasicConstraints, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) // cA is false by default
	})
	addExtension(b, oidSubjectKeyID, func(b *cryptobyte.Builder) { b.AddASN1OctetString(l.ski) })
	b.AddBytes(f.authority)
	addExtension(b, oidSubjectAltName, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			add := func(tag uint8, name []byte) {
				b.AddASN1(cbasn1.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(name) })
			}
			for _, name := range l.dns {
				add(2, []byte(name))
			}
			add(6, []byte(l.uri))
			for _, ip := range l.ips {
				add(7, ip.AsSlice())
			}
		})
	})
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

func addCritical(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1Boolean(true)
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addTime writes UTCTime through 2049, GeneralizedTime after (RFC 5280 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}
