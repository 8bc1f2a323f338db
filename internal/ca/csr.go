package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/legation-io/legation/internal/fault"
)

// maxCSR bounds a request: an RSA-4096 one with extensions is below 3 KiB.
const maxCSR = 16 << 10

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// request is a CSR that was parsed once: what is authorised is what is signed.
type request struct {
	public any
	ski    []byte
	spki   []byte // encoded anew: the certificate carries this form, whatever the request's was
}

// parseCSR checks size, form, key, proof of possession and the URI name.
func parseCSR(der []byte, id spiffeid.ID) (request, error) {
	var r request
	if len(der) == 0 {
		return r, fault.New(fault.Invalid, "no certificate request given")
	}
	if len(der) > maxCSR {
		return r, fault.New(fault.Invalid, "the certificate request has %d bytes, over the limit of %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return r, fault.New(fault.Invalid, "the certificate request is not PKCS #10 in DER: %w", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return r, err
	}
	if err := checkURI(csr, id); err != nil {
		return r, err
	}
	if err := csr.CheckSignature(); err != nil {
		return r, fault.New(fault.Invalid, "the certificate request does not prove possession of its key: %w", err)
	}
	if r.spki, err = x509.MarshalPKIXPublicKey(csr.PublicKey); err != nil {
		return r, fault.New(fault.Invalid, "the request's key: %w", err)
	}
	r.public = csr.PublicKey
	r.ski, err = keyID(r.spki)
	return r, err
}

// checkKey holds the key policy: ECDSA P-256 and P-384, RSA 2048 to 4096.
func checkKey(public any) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return fault.New(fault.Invalid, "the request's key is on curve %s; use ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits", key.Curve.Params().Name)
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
			return fault.New(fault.Invalid, "the request's RSA key has %d bits; use ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits", bits)
		}
		if key.E < 65537 || key.E%2 == 0 || key.N.Bit(0) == 0 {
			return fault.New(fault.Invalid, "the request's RSA key is weak (exponent %d, or an even modulus); make a new one", key.E)
		}
		return nil
	case ed25519.PublicKey:
		return fault.New(fault.Invalid, "the request's key is Ed25519, which Envoy cannot use; use ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits")
	}
	return fault.New(fault.Invalid, "the request's key is of an unknown kind; use ECDSA P-256 or P-384, or RSA of 2048 to 4096 bits")
}

// checkURI compares the request's URI names, byte for byte, with the
// identity. Other names and extensions are the server's to give: ignored.
func checkURI(csr *x509.CertificateRequest, id spiffeid.ID) error {
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		uris, err := uriNames(ext.Value)
		if err != nil {
			return fault.New(fault.Invalid, "the request's subject alternative names cannot be read: %w", err)
		}
		for _, uri := range uris {
			if uri != id.String() {
				return fault.New(fault.Denied, "the request is for %q, but %s was authorised; leave the URI name out, or ask for that one", uri, id)
			}
		}
		if len(uris) > 1 {
			return fault.New(fault.Invalid, "the request has %d URI names; an X.509-SVID has one", len(uris))
		}
	}
	return nil
}

// uriNames reads the uniformResourceIdentifier names ([6]) of a GeneralNames.
func uriNames(der []byte) ([]string, error) {
	in := cryptobyte.String(der)
	var names cryptobyte.String
	if !in.ReadASN1(&names, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("not a sequence of names")
	}
	var uris []string
	for !names.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return nil, errors.New("a name is truncated")
		}
		if tag == cbasn1.Tag(6).ContextSpecific() {
			uris = append(uris, string(name))
		}
	}
	return uris, nil
}

// keyID is the leftmost 160 bits of the SHA-256 of the public key's bits
// (RFC 7093 2, method 1).
func keyID(spki []byte) ([]byte, error) {
	in := cryptobyte.String(spki)
	var seq, bits cryptobyte.String
	if !in.ReadASN1(&seq, cbasn1.SEQUENCE) || !seq.SkipASN1(cbasn1.SEQUENCE) || !seq.ReadASN1(&bits, cbasn1.BIT_STRING) || !bits.Skip(1) {
		return nil, errors.New("not a SubjectPublicKeyInfo")
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func errSerial(s string) error {
	return fault.New(fault.Invalid, "serial %q: write lower-case hex digits", s)
}
