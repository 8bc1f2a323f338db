package chaincheck

import (
	"crypto/x509"
	"encoding/asn1"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// oidTLSFeature: RFC 7633 4.1.
var oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// TLS features that demand a stapled OCSP answer (RFC 6066 8, RFC 6961 2.2).
const (
	featureStatusRequest   = 5
	featureStatusRequestV2 = 17
)

const maxFeatures = 32

func parseFeatures(cert *x509.Certificate, der []byte) ([]uint16, *Error) {
	input := cryptobyte.String(der)
	var list cryptobyte.String
	if !input.ReadASN1(&list, casn1.SEQUENCE) || !input.Empty() || list.Empty() {
		return nil, refuse(Malformed, cert, "its TLS features do not parse (RFC 7633 4)")
	}
	var features []uint16
	for !list.Empty() {
		var n uint16
		if !list.ReadASN1Integer(&n) || len(features) == maxFeatures {
			return nil, refuse(Malformed, cert, "its TLS features do not parse (RFC 7633 4)")
		}
		features = append(features, n)
	}
	slices.Sort(features)
	return features, nil
}

func (f *facts) mustStaple() bool {
	return slices.Contains(f.features, featureStatusRequest) || slices.Contains(f.features, featureStatusRequestV2)
}

// checkFeatures: what a CA's certificate demands, all below it demand too
// (RFC 7633 4.2.1).
func (s *search) checkFeatures() *Error {
	for i, ca := range s.path {
		for _, feature := range ca.features {
			for _, below := range s.path[:i] {
				if !slices.Contains(below.features, feature) {
					return refuse(Constraint, below.cert, "it lacks the TLS feature %d that its CA %s demands of all below it (RFC 7633 4.2.1)", feature, describe(ca.cert))
				}
			}
		}
	}
	return nil
}
