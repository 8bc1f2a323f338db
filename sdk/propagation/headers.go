package propagation

import (
	"maps"
	"net/textproto"
	"strings"
)

// Names of headers and of gRPC metadata, in lower case.
const (
	// HeaderWorkloadIdentity carries the chain.
	HeaderWorkloadIdentity = "x-workload-identity"
	// HeaderSPIFFEID and HeaderWorkloadID are the SPIFFE ID of the peer of the
	// connection; two names for what programs in the field read.
	HeaderSPIFFEID   = "spiffe-id"
	HeaderWorkloadID = "workload-id"
	// HeaderForwardedClientCert is Envoy's; it is only ever removed.
	HeaderForwardedClientCert = "x-forwarded-client-cert"
	// HeaderBaggage is W3C Baggage.
	HeaderBaggage = "baggage"
)

// Canonical names, as http.Header has them.
var (
	canonicalWorkloadIdentity = textproto.CanonicalMIMEHeaderKey(HeaderWorkloadIdentity)
	canonicalSPIFFEID         = textproto.CanonicalMIMEHeaderKey(HeaderSPIFFEID)
	canonicalWorkloadID       = textproto.CanonicalMIMEHeaderKey(HeaderWorkloadID)
	canonicalBaggage          = textproto.CanonicalMIMEHeaderKey(HeaderBaggage)
)

// identityHeader names the header that a program might take a name for,
// whatever its case, underscores or -bin suffix; "" when it is none of ours.
// Servers that put headers into environment variables (CGI, WSGI) cannot tell
// dashes from underscores.
func identityHeader(name string) string {
	name = trimBin(name)
	var want string
	switch len(name) {
	case len(HeaderSPIFFEID):
		want = HeaderSPIFFEID
	case len(HeaderWorkloadID):
		want = HeaderWorkloadID
	case len(HeaderWorkloadIdentity):
		want = HeaderWorkloadIdentity
	case len(HeaderForwardedClientCert):
		want = HeaderForwardedClientCert
	default:
		return ""
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '_':
			c = '-'
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		if c != want[i] {
			return ""
		}
	}
	return want
}

// trimBin removes gRPC's suffix of binary metadata.
func trimBin(name string) string {
	if n := len(name) - 4; n > 0 && (name[n] == '-' || name[n] == '_') && strings.EqualFold(name[n+1:], "bin") {
		return name[:n]
	}
	return name
}

// stripped returns a copy of headers without any that speaks of identities;
// headers itself where there is none. A copy's values are shared.
func stripped(headers map[string][]string) (copied map[string][]string, changed bool) {
	for name := range headers {
		if identityHeader(name) == "" {
			continue
		}
		if !changed {
			copied, changed = maps.Clone(headers), true
		}
		delete(copied, name)
	}
	if !changed {
		return headers, false
	}
	return copied, true
}

// Strip removes, in place, every header that speaks of identities, whatever its
// case, underscores or -bin suffix: for gateways that forward what they got.
// The keys may be those of http.Header or of gRPC metadata.
func Strip(headers map[string][]string) {
	for name := range headers {
		if identityHeader(name) != "" {
			delete(headers, name)
		}
	}
}
