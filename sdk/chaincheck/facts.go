package chaincheck

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// facts is what the checks need to know of one certificate, read once.
type facts struct {
	cert          *x509.Certificate
	names         []name // all subject alternative names, of every type
	sanCritical   bool
	hasKU, hasEKU bool
	kuCritical    bool
	bcCritical    bool
	constraints   *constraints // nil without the extension
	features      []uint16     // of TLS (RFC 7633), sorted
	selfIssued    bool

	asCA   *Error // memo of checkCA
	caDone bool
}

// Last arcs of 2.5.29.x, RFC 5280 4.2.1.
const (
	extSKI               = 14
	extKeyUsage          = 15
	extSAN               = 17
	extBasicConstraints  = 19
	extNameConstraints   = 30
	extPolicies          = 32
	extAKI               = 35
	extPolicyConstraints = 36
	extEKU               = 37
	extInhibitAnyPolicy  = 54
)

// arc returns the x of 2.5.29.x, or -1.
func arc(oid asn1.ObjectIdentifier) int {
	if len(oid) == 4 && oid[0] == 2 && oid[1] == 5 && oid[2] == 29 {
		return oid[3]
	}
	return -1
}

// factsOf reads a certificate and refuses what no certificate of any path may
// have: unknown critical extensions, a wrong version or serial, broken names.
func factsOf(cert *x509.Certificate) (*facts, *Error) {
	f := &facts{cert: cert, selfIssued: bytes.Equal(cert.RawSubject, cert.RawIssuer)}
	if cert.Version != 3 {
		return nil, refuse(Malformed, cert, "it is X.509 version %d, only 3 has what an SVID needs", cert.Version)
	}
	// RFC 5280 4.1.2.2.
	// Old roots have the serial 0, which names no other certificate.
	if n := cert.SerialNumber; n == nil || n.Sign() < 0 || n.BitLen() > 20*8-1 || n.Sign() == 0 && !f.selfIssued {
		return nil, refuse(Malformed, cert, "its serial number is not a positive number of at most 20 octets")
	}
	if !validityForm(cert.RawTBSCertificate) {
		return nil, refuse(Malformed, cert, "its validity is not written as RFC 5280 4.1.2.5 demands: UTCTime to 2049, GeneralizedTime after, in whole seconds, with Z")
	}
	if len(cert.RawIssuer) <= 2 {
		return nil, refuse(Malformed, cert, "it has an empty issuer (RFC 5280 4.1.2.4)")
	}
	for _, ext := range cert.Extensions {
		var err *Error
		switch a := arc(ext.Id); a {
		case extSAN:
			f.sanCritical = ext.Critical
			f.names, err = parseNames(cert, ext.Value)
		case extNameConstraints:
			if !ext.Critical {
				return nil, refuse(Malformed, cert, "its name constraints are not critical (RFC 5280 4.2.1.10)")
			}
			f.constraints, err = parseConstraints(cert, ext.Value)
		case extKeyUsage:
			f.hasKU, f.kuCritical = true, ext.Critical
		case extEKU:
			f.hasEKU = true
		case extBasicConstraints:
			f.bcCritical = ext.Critical
		case extSKI, extAKI:
			if ext.Critical {
				return nil, refuse(Malformed, cert, "its key identifier extension %s is critical (RFC 5280 4.2.1.1, 4.2.1.2)", ext.Id)
			}
		case extPolicyConstraints, extInhibitAnyPolicy:
			// Policies are not processed: a CA that asks for it is refused,
			// critical or not.
			return nil, refuse(Constraint, cert, "it demands certificate policy processing (extension %s), which is not supported", ext.Id)
		default:
			if ext.Id.Equal(oidTLSFeature) {
				f.features, err = parseFeatures(cert, ext.Value)
			} else if ext.Critical {
				return nil, refuse(Constraint, cert, "it has the critical extension %s, which is not understood", ext.Id)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if len(cert.RawSubject) <= 2 && len(f.names) > 0 && !f.sanCritical {
		return nil, refuse(Malformed, cert, "its subject is empty, so its subject alternative name must be critical (RFC 5280 4.1.2.6)")
	}
	return f, nil
}

// validityForm looks at how the dates are written, which crypto/x509 reads in
// other forms too (without seconds, with a time zone).
func validityForm(tbs []byte) bool {
	input := cryptobyte.String(tbs)
	var seq, validity cryptobyte.String
	if !input.ReadASN1(&seq, casn1.SEQUENCE) || !seq.SkipOptionalASN1(casn1.Tag(0).ContextSpecific().Constructed()) || // version
		!seq.SkipASN1(casn1.INTEGER) || !seq.SkipASN1(casn1.SEQUENCE) || !seq.SkipASN1(casn1.SEQUENCE) || // serial, signature, issuer
		!seq.ReadASN1(&validity, casn1.SEQUENCE) {
		return false
	}
	for range 2 {
		var at cryptobyte.String
		var tag casn1.Tag
		if !validity.ReadAnyASN1(&at, &tag) || len(at) == 0 || at[len(at)-1] != 'Z' {
			return false
		}
		switch {
		case tag == casn1.UTCTime && len(at) == len("060102150405Z"):
		case tag == casn1.GeneralizedTime && len(at) == len("20060102150405Z") && string(at[:4]) >= "2050":
		default:
			return false
		}
	}
	return validity.Empty()
}

// SPIFFE-ID 2.3.
const (
	maxID          = 2048
	maxTrustDomain = 255
)

// spiffeID returns the one URI name, as it stands in the certificate
// (X509-SVID 2, 5.2). Nothing is normalised.
func (f *facts) spiffeID() (spiffeid.ID, *Error) {
	var uri []byte
	for _, n := range f.names {
		if n.kind != nameURI {
			continue
		}
		if uri != nil {
			return spiffeid.ID{}, refuse(WrongSAN, f.cert, "it has more than one URI name (X509-SVID 2)")
		}
		uri = n.value
	}
	if uri == nil {
		return spiffeid.ID{}, refuse(WrongSAN, f.cert, "it has no URI name, so no SPIFFE ID; names of other types do not count (X509-SVID 2)")
	}
	if len(uri) > maxID {
		return spiffeid.ID{}, refuse(WrongSAN, f.cert, "its SPIFFE ID has %d bytes, at most %d are accepted (SPIFFE-ID 2.3)", len(uri), maxID)
	}
	id, err := spiffeid.FromString(string(uri))
	if err == nil && len(id.TrustDomain().Name()) > maxTrustDomain {
		err = fmt.Errorf("its trust domain has more than %d bytes (SPIFFE-ID 2.3)", maxTrustDomain)
	}
	if err != nil {
		return spiffeid.ID{}, refuse(WrongSAN, f.cert, "its URI name %.256q is no SPIFFE ID: %v", uri, err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, refuse(WrongSAN, f.cert, "its SPIFFE ID %s has no path: it names a trust domain, not a workload (X509-SVID 3.1)", id)
	}
	return id, nil
}

// checkValid: RFC 5280 4.1.2.5, both ends inclusive.
func (f *facts) checkValid(now time.Time) *Error {
	if now.Before(f.cert.NotBefore) {
		return refuse(NotYetValid, f.cert, "it is valid from %s, it is %s here", stamp(f.cert.NotBefore), stamp(now))
	}
	if now.After(f.cert.NotAfter) {
		return refuse(Expired, f.cert, "it expired %s, it is %s here", stamp(f.cert.NotAfter), stamp(now))
	}
	return nil
}

// checkProfile: what X509-SVID asks of a leaf beyond RFC 5280.
func (f *facts) checkProfile() *Error {
	c := f.cert
	switch {
	case !f.hasKU:
		return refuse(BadUsage, c, "it has no key usage (X509-SVID 4.3)")
	case !f.kuCritical:
		return refuse(BadUsage, c, "its key usage is not critical (X509-SVID 4.3)")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse(BadUsage, c, "its key usage lacks digitalSignature (X509-SVID 4.3)")
	}
	return nil
}

// checkLeaf: X509-SVID 4 and 5.2, RFC 5280 4.2.1.
func (f *facts) checkLeaf(usage Usage, now time.Time) *Error {
	c := f.cert
	const signs = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case c.IsCA:
		return refuse(BadUsage, c, "it is a CA certificate and authenticates nobody (X509-SVID 4.1)")
	case c.KeyUsage&signs != 0:
		return refuse(BadUsage, c, "its key usage has keyCertSign or cRLSign (X509-SVID 4.3)")
	case f.constraints != nil:
		return refuse(Malformed, c, "it has name constraints, which only CA certificates may have (RFC 5280 4.2.1.10)")
	case c.BasicConstraintsValid && (c.MaxPathLen > 0 || c.MaxPathLenZero):
		return refuse(Malformed, c, "it has a path length constraint and is no CA (RFC 5280 4.2.1.9)")
	case f.hasEKU && len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0:
		return refuse(BadUsage, c, "its extended key usage is empty (RFC 5280 4.2.1.12)")
	}
	if want, needed := wanted(usage); needed && !slices.Contains(c.ExtKeyUsage, want) {
		return refuse(BadUsage, c, "its extended key usage lacks %s", usageName(usage))
	}
	if err := f.checkKey(); err != nil {
		return err
	}
	if len(c.AuthorityKeyId) == 0 {
		return refuse(Malformed, c, "it has no authority key identifier (RFC 5280 4.2.1.1)")
	}
	return f.checkValid(now)
}

// checkCA: X509-SVID 3.2, 4.1, 4.3 and RFC 5280 4.2.1, for intermediates and
// trust anchors alike.
func (f *facts) checkCA(usage Usage, now time.Time) *Error {
	if !f.caDone {
		f.asCA, f.caDone = f.checkCAOnce(usage, now), true
	}
	return f.asCA
}

func (f *facts) checkCAOnce(usage Usage, now time.Time) *Error {
	c := f.cert
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return refuse(BadUsage, c, "it is not a CA and so issues nothing (X509-SVID 4.1)")
	case !f.bcCritical:
		return refuse(Malformed, c, "it is a CA whose basic constraints are not critical (RFC 5280 4.2.1.9)")
	case !f.hasKU || c.KeyUsage&x509.KeyUsageCertSign == 0:
		return refuse(BadUsage, c, "it is a CA without keyCertSign (X509-SVID 4.3)")
	case len(c.RawSubject) <= 2:
		return refuse(Malformed, c, "it is a CA with an empty subject (RFC 5280 4.1.2.6)")
	case len(c.SubjectKeyId) == 0:
		return refuse(Malformed, c, "it is a CA without a subject key identifier (RFC 5280 4.2.1.2)")
	case len(c.AuthorityKeyId) == 0 && !f.selfIssued:
		return refuse(Malformed, c, "it has no authority key identifier (RFC 5280 4.2.1.1)")
	}
	if want, needed := wanted(usage); needed && f.hasEKU &&
		!slices.Contains(c.ExtKeyUsage, want) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return refuse(BadUsage, c, "it is a CA whose extended key usage lacks %s", usageName(usage))
	}
	if err := f.checkKey(); err != nil {
		return err
	}
	return f.checkValid(now)
}

func wanted(usage Usage) (x509.ExtKeyUsage, bool) {
	switch usage {
	case Client:
		return x509.ExtKeyUsageClientAuth, true
	case Server:
		return x509.ExtKeyUsageServerAuth, true
	}
	return 0, false
}

func usageName(usage Usage) string {
	if usage == Client {
		return "clientAuth (it was presented by a client)"
	}
	return "serverAuth (it was presented by a server)"
}

// checkKey refuses keys below 112 bits of strength, and RSA keys whose
// verification would be a burden.
func (f *facts) checkKey() *Error {
	switch key := f.cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return refuse(WeakKey, f.cert, "its key is on the curve %s; P-256, P-384 and P-521 are accepted", key.Curve.Params().Name)
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		if bits < 2048 || bits > 8192 || bits%8 != 0 {
			return refuse(WeakKey, f.cert, "its RSA key has %d bits; 2048 to 8192 in whole bytes are accepted", bits)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return refuse(WeakKey, f.cert, "its key algorithm %s is not accepted", f.cert.PublicKeyAlgorithm)
}
