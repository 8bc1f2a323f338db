package chaincheck

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// nonceBytes is what RFC 9654 2.1 recommends.
const nonceBytes = 32

// ocspRequest encodes a question (RFC 6960 4.1.1) about child. Without a
// nonce it is the one that RFC 5019 describes, which caches understand.
func ocspRequest(h crypto.Hash, child, issuer *x509.Certificate, withNonce bool) (der, nonce []byte, err error) {
	id, err := newCertID(h, child, issuer)
	if err != nil {
		return nil, nil, err
	}
	if withNonce {
		nonce = make([]byte, nonceBytes)
		_, _ = rand.Read(nonce) // never fails
	}
	oid := oidSHA1
	if h == crypto.SHA256 {
		oid = oidSHA256
	}
	der, err = encodeRequest(oid, id, nonce)
	return der, nonce, err
}

func encodeRequest(hash asn1.ObjectIdentifier, id certID, nonce []byte) ([]byte, error) {
	seq := casn1.SEQUENCE
	var b cryptobyte.Builder
	b.AddASN1(seq, func(b *cryptobyte.Builder) { // OCSPRequest
		b.AddASN1(seq, func(b *cryptobyte.Builder) { // TBSRequest
			b.AddASN1(seq, func(b *cryptobyte.Builder) { // requestList
				b.AddASN1(seq, func(b *cryptobyte.Builder) { // Request
					b.AddASN1(seq, func(b *cryptobyte.Builder) { // CertID
						b.AddASN1(seq, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(hash)
							b.AddASN1NULL()
						})
						b.AddASN1OctetString(id.nameHash)
						b.AddASN1OctetString(id.keyHash)
						b.AddASN1(casn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(id.serial) })
					})
				})
			})
			if nonce == nil {
				return
			}
			b.AddASN1(explicit(2), func(b *cryptobyte.Builder) { // requestExtensions
				b.AddASN1(seq, func(b *cryptobyte.Builder) {
					b.AddASN1(seq, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidOCSPNonce)
						b.AddASN1(casn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode an OCSP request: %w", err)
	}
	return der, nil
}
