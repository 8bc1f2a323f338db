package chaincheck

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of a response.
const (
	maxOCSP          = 64 << 10 // bytes
	maxOCSPAnswers   = 64       // single responses in one
	maxOCSPResponder = 4        // certificates that come with one
	maxNonce         = 128      // RFC 9654 2.1
)

// ocspResponse is a parsed, not yet believed, BasicOCSPResponse (RFC 6960
// 4.2.1).
type ocspResponse struct {
	tbs         []byte // what is signed
	algorithm   x509.SignatureAlgorithm
	signature   []byte
	byName      []byte // responder ID: a Name,
	byKey       []byte // or the SHA-1 of a key
	producedAt  time.Time
	singles     []singleResponse
	nonce       []byte // nil without one
	responders  [][]byte
	unsupported asn1.ObjectIdentifier // a critical extension, nil without one
}

type singleResponse struct {
	hash        crypto.Hash // 0 for one that is not known here
	nameHash    []byte
	keyHash     []byte
	serial      []byte // contents of the INTEGER
	status      Status
	revokedAt   time.Time
	reason      int
	thisUpdate  time.Time
	nextUpdate  time.Time // zero without one
	unsupported asn1.ObjectIdentifier
}

var (
	oidOCSPBasic     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidOCSPNonce     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidOCSPNoCheck   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidArchiveCutoff = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 6}
	oidExtendedRevoc = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 9}
	oidSHA1          = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

var errOCSPSyntax = errors.New("it does not parse as RFC 6960 4.2.1 demands")

func explicit(n uint8) casn1.Tag { return casn1.Tag(n).ContextSpecific().Constructed() }
func implicit(n uint8) casn1.Tag { return casn1.Tag(n).ContextSpecific() }

// parseOCSP reads a response. What is not a successful answer is an error
// that names the responder's status.
func parseOCSP(der []byte) (*ocspResponse, error) {
	if len(der) > maxOCSP {
		return nil, fmt.Errorf("it has %d bytes, at most %d are looked at", len(der), maxOCSP)
	}
	input := cryptobyte.String(der)
	var outer, basicBytes, typed, body, basic cryptobyte.String
	var status int
	var has bool
	var kind asn1.ObjectIdentifier
	if !input.ReadASN1(&outer, casn1.SEQUENCE) || !input.Empty() || !outer.ReadASN1Enum(&status) {
		return nil, errOCSPSyntax
	}
	if status != 0 {
		return nil, fmt.Errorf("the responder answered %s", responderStatus(status))
	}
	if !outer.ReadOptionalASN1(&basicBytes, &has, explicit(0)) || !has || !outer.Empty() ||
		!basicBytes.ReadASN1(&typed, casn1.SEQUENCE) || !basicBytes.Empty() ||
		!typed.ReadASN1ObjectIdentifier(&kind) || !typed.ReadASN1(&body, casn1.OCTET_STRING) || !typed.Empty() {
		return nil, errOCSPSyntax
	}
	if !kind.Equal(oidOCSPBasic) {
		return nil, fmt.Errorf("it is of type %s; only a basic response is understood (RFC 6960 4.2.1)", kind)
	}
	if !body.ReadASN1(&basic, casn1.SEQUENCE) || !body.Empty() {
		return nil, errOCSPSyntax
	}
	return parseBasicOCSP(basic)
}

func responderStatus(n int) string {
	names := [...]string{1: "malformedRequest", 2: "internalError", 3: "tryLater", 5: "sigRequired", 6: "unauthorized"}
	if n > 0 && n < len(names) && names[n] != "" {
		return names[n]
	}
	return fmt.Sprintf("status %d", n)
}

func parseBasicOCSP(basic cryptobyte.String) (*ocspResponse, error) {
	r := &ocspResponse{}
	var tbs, algorithm, certs, list cryptobyte.String
	var has bool
	if !basic.ReadASN1Element(&tbs, casn1.SEQUENCE) || !basic.ReadASN1Element(&algorithm, casn1.SEQUENCE) ||
		!basic.ReadASN1BitStringAsBytes(&r.signature) || !basic.ReadOptionalASN1(&certs, &has, explicit(0)) || !basic.Empty() {
		return nil, errOCSPSyntax
	}
	r.tbs = tbs
	var ok bool
	if r.algorithm, ok = signatureAlgorithm(algorithm); !ok {
		return nil, errors.New("its signature algorithm is not accepted: SHA-256 and better with RSA, RSA-PSS, ECDSA, and Ed25519 are")
	}
	if has {
		if !certs.ReadASN1(&list, casn1.SEQUENCE) || !certs.Empty() {
			return nil, errOCSPSyntax
		}
		for !list.Empty() {
			var cert cryptobyte.String
			if !list.ReadASN1Element(&cert, casn1.SEQUENCE) {
				return nil, errOCSPSyntax
			}
			if len(r.responders) == maxOCSPResponder {
				return nil, fmt.Errorf("it brings more than %d certificates", maxOCSPResponder)
			}
			r.responders = append(r.responders, cert)
		}
	}
	return r, r.parseData(tbs)
}

// parseData reads the ResponseData.
func (r *ocspResponse) parseData(tbs cryptobyte.String) error {
	var data, responder, responses, extensions cryptobyte.String
	var has bool
	if !tbs.ReadASN1(&data, casn1.SEQUENCE) {
		return errOCSPSyntax
	}
	// version is v1, which DER leaves out.
	var tag casn1.Tag
	if !data.ReadAnyASN1(&responder, &tag) {
		return errOCSPSyntax
	}
	switch tag {
	case explicit(0):
		return errors.New("it is of a version that is not understood; RFC 6960 knows v1, which is not written")
	case explicit(1):
		var name cryptobyte.String
		if !responder.ReadASN1Element(&name, casn1.SEQUENCE) || !responder.Empty() {
			return errOCSPSyntax
		}
		r.byName = name
	case explicit(2):
		var key cryptobyte.String
		if !responder.ReadASN1(&key, casn1.OCTET_STRING) || !responder.Empty() || len(key) != crypto.SHA1.Size() {
			return errOCSPSyntax
		}
		r.byKey = key
	default:
		return errOCSPSyntax
	}
	if !data.ReadASN1GeneralizedTime(&r.producedAt) || !data.ReadASN1(&responses, casn1.SEQUENCE) ||
		!data.ReadOptionalASN1(&extensions, &has, explicit(1)) || !data.Empty() {
		return errOCSPSyntax
	}
	for !responses.Empty() {
		if len(r.singles) == maxOCSPAnswers {
			return fmt.Errorf("it answers for more than %d certificates", maxOCSPAnswers)
		}
		single, err := parseSingle(&responses)
		if err != nil {
			return err
		}
		r.singles = append(r.singles, single)
	}
	if !has {
		return nil
	}
	return readExtensions(extensions, func(oid asn1.ObjectIdentifier, critical bool, value cryptobyte.String) bool {
		if !oid.Equal(oidOCSPNonce) {
			if critical && !oid.Equal(oidExtendedRevoc) {
				r.unsupported = oid
			}
			return true
		}
		var nonce cryptobyte.String
		if r.nonce != nil || !value.ReadASN1(&nonce, casn1.OCTET_STRING) || !value.Empty() {
			return false
		}
		r.nonce = nonce
		return len(r.nonce) > 0 && len(r.nonce) <= maxNonce
	})
}

func parseSingle(responses *cryptobyte.String) (singleResponse, error) {
	var single singleResponse
	var entry, id, algorithm, status, next, extensions cryptobyte.String
	var oid asn1.ObjectIdentifier
	var has bool
	if !responses.ReadASN1(&entry, casn1.SEQUENCE) || !entry.ReadASN1(&id, casn1.SEQUENCE) ||
		!id.ReadASN1(&algorithm, casn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!id.ReadASN1((*cryptobyte.String)(&single.nameHash), casn1.OCTET_STRING) ||
		!id.ReadASN1((*cryptobyte.String)(&single.keyHash), casn1.OCTET_STRING) ||
		!id.ReadASN1((*cryptobyte.String)(&single.serial), casn1.INTEGER) || !id.Empty() {
		return single, errOCSPSyntax
	}
	switch {
	case oid.Equal(oidSHA1):
		single.hash = crypto.SHA1
	case oid.Equal(oidSHA256):
		single.hash = crypto.SHA256
	}
	var tag casn1.Tag
	if !entry.ReadAnyASN1(&status, &tag) {
		return single, errOCSPSyntax
	}
	switch tag {
	case implicit(0):
		single.status = StatusGood
		if !status.Empty() {
			return single, errOCSPSyntax
		}
	case explicit(1): // a SEQUENCE, implicitly tagged
		single.status = StatusRevoked
		var reason cryptobyte.String
		if !status.ReadASN1GeneralizedTime(&single.revokedAt) || !status.ReadOptionalASN1(&reason, &has, explicit(0)) || !status.Empty() {
			return single, errOCSPSyntax
		}
		if has && (!reason.ReadASN1Enum(&single.reason) || !reason.Empty()) {
			return single, errOCSPSyntax
		}
	case implicit(2):
		single.status = StatusUnknown
		if !status.Empty() {
			return single, errOCSPSyntax
		}
	default:
		return single, errOCSPSyntax
	}
	if !entry.ReadASN1GeneralizedTime(&single.thisUpdate) || !entry.ReadOptionalASN1(&next, &has, explicit(0)) {
		return single, errOCSPSyntax
	}
	if has && (!next.ReadASN1GeneralizedTime(&single.nextUpdate) || !next.Empty()) {
		return single, errOCSPSyntax
	}
	if !entry.ReadOptionalASN1(&extensions, &has, explicit(1)) || !entry.Empty() {
		return single, errOCSPSyntax
	}
	if !has {
		return single, nil
	}
	return single, readExtensions(extensions, func(oid asn1.ObjectIdentifier, critical bool, _ cryptobyte.String) bool {
		if a := arc(oid); critical && a != extReasonCode && a != extInvalidityDate && !oid.Equal(oidArchiveCutoff) {
			single.unsupported = oid
		}
		return true
	})
}

// readExtensions walks an Extensions.
func readExtensions(s cryptobyte.String, each func(asn1.ObjectIdentifier, bool, cryptobyte.String) bool) error {
	var list cryptobyte.String
	if !s.ReadASN1(&list, casn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return errOCSPSyntax
	}
	for n := 0; !list.Empty(); n++ {
		var ext, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if n == 32 || !list.ReadASN1(&ext, casn1.SEQUENCE) || !ext.ReadASN1ObjectIdentifier(&oid) ||
			ext.PeekASN1Tag(casn1.BOOLEAN) && !ext.ReadASN1Boolean(&critical) || !ext.ReadASN1(&value, casn1.OCTET_STRING) || !ext.Empty() ||
			!each(oid, critical, value) {
			return errOCSPSyntax
		}
	}
	return nil
}

// algorithms are the AlgorithmIdentifiers (RFC 4055, 5758, 8410) of the
// signatures that are accepted, in DER. RSA with SHA-2 is also met without
// the NULL.
var algorithms = []struct {
	der string
	is  x509.SignatureAlgorithm
}{
	{"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02", x509.ECDSAWithSHA256},
	{"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03", x509.ECDSAWithSHA384},
	{"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04", x509.ECDSAWithSHA512},
	{"\x30\x05\x06\x03\x2b\x65\x70", x509.PureEd25519},
	{"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00", x509.SHA256WithRSA},
	{"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00", x509.SHA384WithRSA},
	{"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00", x509.SHA512WithRSA},
	{"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", x509.SHA256WithRSA},
	{"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", x509.SHA384WithRSA},
	{"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", x509.SHA512WithRSA},
	{pssIdentifier("\x01", "\x20"), x509.SHA256WithRSAPSS},
	{pssIdentifier("\x02", "\x30"), x509.SHA384WithRSAPSS},
	{pssIdentifier("\x03", "\x40"), x509.SHA512WithRSAPSS},
}

// pssIdentifier: RFC 4055 3.1 with one hash for all and its length as salt.
func pssIdentifier(hash, salt string) string {
	sha2 := "\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02" + hash + "\x05\x00"
	return "\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34" +
		"\xa0\x0f" + sha2 +
		"\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08" + sha2 +
		"\xa2\x03\x02\x01" + salt
}

func signatureAlgorithm(der []byte) (x509.SignatureAlgorithm, bool) {
	for _, a := range algorithms {
		if string(der) == a.der {
			return a.is, true
		}
	}
	return 0, false
}
