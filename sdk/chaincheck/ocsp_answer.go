package chaincheck

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// undatedAnswer is how long an answer without nextUpdate counts: RFC 6960
// 4.2.2.1 says only that newer information is always to be had.
const undatedAnswer = 10 * time.Minute

// ocspAnswer is a genuine answer about one certificate: its issuer, or a
// responder that the issuer appointed, signed it. Whether it still counts is
// asked each time, see judge.
type ocspAnswer struct {
	status     Status
	producedAt time.Time
	thisUpdate time.Time
	nextUpdate time.Time // never zero
	revokedAt  time.Time
	reason     int
	responder  *x509.Certificate // nil: the issuer itself
	signer     string            // who answered, in words
}

// certID names a certificate in OCSP (RFC 6960 4.1.1).
type certID struct {
	nameHash, keyHash, serial []byte
}

func newCertID(h crypto.Hash, child, issuer *x509.Certificate) (certID, error) {
	key, err := keyBits(issuer)
	if err != nil {
		return certID{}, err
	}
	return certID{digest(h, issuer.RawSubject), digest(h, key), serialContents(child)}, nil
}

// digest is SHA-1 or SHA-256. SHA-1 names here; nothing rests on it.
func digest(h crypto.Hash, data []byte) []byte {
	if h == crypto.SHA256 {
		sum := sha256.Sum256(data)
		return sum[:]
	}
	sum := sha1.Sum(data)
	return sum[:]
}

// keyBits are the contents of a key's BIT STRING, which OCSP hashes.
func keyBits(cert *x509.Certificate) ([]byte, error) {
	spki := cryptobyte.String(cert.RawSubjectPublicKeyInfo)
	var inner cryptobyte.String
	var bits []byte
	if !spki.ReadASN1(&inner, casn1.SEQUENCE) || !inner.SkipASN1(casn1.SEQUENCE) || !inner.ReadASN1BitStringAsBytes(&bits) {
		return nil, errors.New("the issuer's public key does not parse")
	}
	return bits, nil
}

// serialContents are the contents of a serial number's INTEGER.
func serialContents(cert *x509.Certificate) []byte {
	raw := cert.SerialNumber.Bytes()
	if len(raw) == 0 || raw[0]&0x80 != 0 {
		raw = append([]byte{0}, raw...)
	}
	return raw
}

// answerFor finds the answer about child, which issuer signed, and checks who
// gave it (RFC 6960 3.2). It looks at no clock.
func (r *ocspResponse) answerFor(child, issuer *x509.Certificate, work *Work) (*ocspAnswer, error) {
	if r.unsupported != nil {
		return nil, fmt.Errorf("it has the critical extension %s, which is not understood", r.unsupported)
	}
	single, err := r.single(child, issuer)
	if err != nil {
		return nil, err
	}
	a := &ocspAnswer{
		status: single.status, producedAt: r.producedAt, thisUpdate: single.thisUpdate, nextUpdate: single.nextUpdate,
		revokedAt: single.revokedAt, reason: single.reason,
	}
	if a.nextUpdate.IsZero() {
		a.nextUpdate = a.thisUpdate.Add(undatedAnswer)
	}
	if a.nextUpdate.Before(a.thisUpdate) {
		return nil, errors.New("its nextUpdate lies before its thisUpdate")
	}
	if a.responder, err = r.authenticate(child, issuer, work); err != nil {
		return nil, err
	}
	if a.responder == nil {
		a.signer = "the issuer"
	} else {
		a.signer = "the responder " + describe(a.responder)
	}
	return a, nil
}

// single finds what the response says of child: revoked if it says so
// anywhere, else what is newest.
func (r *ocspResponse) single(child, issuer *x509.Certificate) (*singleResponse, error) {
	var best *singleResponse
	var ids [2]*certID
	for i := range r.singles {
		s := &r.singles[i]
		n := 0
		switch s.hash {
		case crypto.SHA1:
		case crypto.SHA256:
			n = 1
		default:
			continue
		}
		if ids[n] == nil {
			id, err := newCertID(s.hash, child, issuer)
			if err != nil {
				return nil, err
			}
			ids[n] = &id
		}
		if !bytes.Equal(s.serial, ids[n].serial) || !bytes.Equal(s.nameHash, ids[n].nameHash) || !bytes.Equal(s.keyHash, ids[n].keyHash) {
			continue
		}
		if s.unsupported != nil {
			return nil, fmt.Errorf("its answer has the critical extension %s, which is not understood", s.unsupported)
		}
		if best == nil || best.status != StatusRevoked && (s.status == StatusRevoked || s.thisUpdate.After(best.thisUpdate)) {
			best = s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("it does not answer for serial %.40s of this issuer", child.SerialNumber.Text(16))
	}
	return best, nil
}

// authenticate finds who signed: nil for the issuer, or a responder that the
// issuer itself appointed (RFC 6960 4.2.2.2).
func (r *ocspResponse) authenticate(child, issuer *x509.Certificate, work *Work) (*x509.Certificate, error) {
	if r.isResponder(issuer) {
		if err := r.signedBy(issuer, work); err != nil {
			return nil, err
		}
		return nil, nil
	}
	why := errors.New("its responder is not the issuer and brings no certificate")
	for _, der := range r.responders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			why = fmt.Errorf("its responder's certificate does not parse: %.256v", err) // it repeats what a stranger wrote
			continue
		}
		if !r.isResponder(cert) {
			why = fmt.Errorf("its responder is neither the issuer nor %s, whose certificate it brings", describe(cert))
			continue
		}
		if err := appointed(cert, child, issuer, work); err != nil {
			return nil, fmt.Errorf("its responder %s %w", describe(cert), err)
		}
		if err := r.signedBy(cert, work); err != nil {
			return nil, err
		}
		return cert, nil
	}
	return nil, why
}

func (r *ocspResponse) isResponder(cert *x509.Certificate) bool {
	if r.byName != nil {
		return bytes.Equal(r.byName, cert.RawSubject)
	}
	key, err := keyBits(cert)
	return err == nil && bytes.Equal(r.byKey, digest(crypto.SHA1, key))
}

func (r *ocspResponse) signedBy(cert *x509.Certificate, work *Work) error {
	work.Signatures++
	if cert.CheckSignature(r.algorithm, r.tbs, r.signature) != nil {
		return fmt.Errorf("the key of %s did not make its signature", describe(cert))
	}
	return nil
}

// appointed: id-kp-OCSPSigning, in a certificate that the issuer of the
// certificate in question signed itself.
func appointed(cert, child, issuer *x509.Certificate, work *Work) error {
	f, err := factsOf(cert)
	if err == nil {
		err = f.checkKey()
	}
	if err == nil {
		err = checkAlgorithm(cert)
	}
	switch {
	case err != nil:
		return fmt.Errorf("is not accepted: %s", err.Detail)
	case bytes.Equal(cert.Raw, child.Raw):
		return errors.New("vouches for itself")
	case cert.IsCA:
		return errors.New("is a CA, which an appointed responder may not be here")
	case !bytes.Equal(cert.RawIssuer, issuer.RawSubject),
		len(cert.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId):
		return errors.New("was not issued by the certificate's own issuer (RFC 6960 4.2.2.2)")
	case !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return errors.New("was not appointed: its extended key usage lacks id-kp-OCSPSigning (RFC 6960 4.2.2.2)")
	case f.hasKU && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("has a key usage without digitalSignature")
	}
	work.Signatures++
	if issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) != nil {
		return errors.New("has a certificate that the issuer's key did not sign")
	}
	return nil
}

// judge says what a genuine answer is worth now. One that says revoked counts
// whatever the date: time gives nobody a certificate back, nor does a clock
// that is set. One that says good counts while it is current and its
// responder may still speak.
func (a *ocspAnswer) judge(source Source, issuer *x509.Certificate, now time.Time, crls *CRLSet, denied *DenySet, work *Work) Revocation {
	r := Revocation{Source: source, Responder: a.signer, ThisUpdate: a.thisUpdate, NextUpdate: a.nextUpdate, until: a.nextUpdate}
	if a.status == StatusRevoked {
		r.Status, r.RevokedAt, r.Reason = StatusRevoked, a.revokedAt, a.reason
		return r
	}
	r.Status = StatusUnknown
	if r.Why = a.undue(now); r.Why != "" {
		return r
	}
	if a.responder != nil {
		why, until := a.mayAnswer(issuer, now, crls, denied, work)
		if why != "" {
			r.Why = "the OCSP answer does not count: " + a.signer + " " + why
			return r
		}
		r.until = earlier(r.until, until)
	}
	if a.status == StatusUnknown {
		r.disowned = true
		r.Why = a.signer + " does not know the certificate"
		return r
	}
	r.Status = StatusGood
	return r
}

// undue returns "" for an answer that is current.
func (a *ocspAnswer) undue(now time.Time) string {
	switch {
	case now.After(a.nextUpdate):
		return fmt.Sprintf("the OCSP answer of %s was current until %s, it is %s here", a.signer, stamp(a.nextUpdate), stamp(now))
	case a.thisUpdate.After(now.Add(maxEarly)), a.producedAt.After(now.Add(maxEarly)):
		return fmt.Sprintf("the OCSP answer of %s is from %s, it is %s here", a.signer, stamp(a.thisUpdate), stamp(now))
	}
	return ""
}

// checkNonce ties an answer to the question (RFC 9654 2).
func (r *ocspResponse) checkNonce(sent []byte, mode NonceMode) error {
	switch {
	case r.nonce == nil && mode == NonceRequire:
		return errors.New("it has no nonce, so it could be a replay, and a nonce is required")
	case r.nonce != nil && !bytes.Equal(r.nonce, sent):
		return errors.New("its nonce is not the one that was sent: it answers another question")
	}
	return nil
}

// mayAnswer returns "" for an appointed responder whose own certificate holds
// now, and until when at most that is so. Its revocation is looked up in the
// issuer's list, unless the issuer said that nobody need look (RFC 6960
// 4.2.2.2.1).
func (a *ocspAnswer) mayAnswer(issuer *x509.Certificate, now time.Time, crls *CRLSet, denied *DenySet, work *Work) (why string, until time.Time) {
	until = a.responder.NotAfter
	switch {
	case now.Before(a.responder.NotBefore):
		return "has a certificate from " + stamp(a.responder.NotBefore), until
	case now.After(until):
		return "has a certificate that expired " + stamp(until), until
	}
	if d := denied.certificate(a.responder, issuer); d != nil {
		return "is denied: " + d.String(), until
	}
	crl, found := crls.find(a.responder, issuer, now, work)
	switch {
	case crl.Status == StatusRevoked:
		return "is itself " + crl.String(), until
	case noCheck(a.responder):
		return "", until
	case crl.Status == StatusGood:
		return "", earlier(until, crl.until)
	}
	if !found {
		crl = noList(issuer)
	}
	return "has a certificate without id-pkix-ocsp-nocheck, and its " + crl.String(), until
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// noCheck reports id-pkix-ocsp-nocheck (RFC 6960 4.2.2.2.1).
func noCheck(cert *x509.Certificate) bool {
	for i := range cert.Extensions {
		if cert.Extensions[i].Id.Equal(oidOCSPNoCheck) {
			return true
		}
	}
	return false
}
