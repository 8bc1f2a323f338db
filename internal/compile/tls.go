package compile

import (
	"fmt"
	"regexp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// SDS names of the subject's own certificate and of the roots it trusts.
const (
	secretCertificate = "default"
	secretRoots       = "ROOTCA"
)

// ads says "from the agent". Without a time limit: an Envoy that went on
// without its secrets would look healthy and refuse everyone.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0),
	}
}

// common is TLS 1.3 alone, with our certificate, against the roots of SDS and
// the names wanted. The default validator: Envoy's SPIFFE validator ignores
// CRLs.
func common(names []*tlsv3.SubjectAltNameMatcher) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			EcdhCurves:                []string{"X25519MLKEM768", "X25519", "P-256"},
		},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: secretCertificate, SdsConfig: ads()}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names},
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: secretRoots, SdsConfig: ads()},
			}},
	}
}

func uri(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

// workloads is a regular expression for the whole ID of any workload of the
// trust domain: every one but /legation and what lies below, which are agents
// and servers. A stolen agent's certificate is a peer to its control plane and
// to nobody else. RE2 knows no "not": where an ID's path leaves "legation",
// the rest is free.
func workloads(td spiffeid.TrustDomain) string {
	const reserved = "legation"
	rest := "[!-.0-~][!-~]*" // a longer first segment
	for i := len(reserved) - 1; i >= 0; i-- {
		c := reserved[i]
		rest = fmt.Sprintf("(?:[!-%c%c-~][!-~]*|%c%s)", c-1, c+1, c, rest)
		if i > 0 {
			rest += "?" // it may end here
		}
	}
	return regexp.QuoteMeta(td.IDString()+"/") + rest
}

// server terminates mTLS from any workload of the trust domain. No session is
// resumed: resumption skips verification (A25).
func server(td spiffeid.TrustDomain) *corev3.TransportSocket {
	anyone := uri(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: workloads(td)}}})
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:                 common([]*tlsv3.SubjectAltNameMatcher{anyone}),
		RequireClientCertificate:         wrapperspb.Bool(true),
		DisableStatefulSessionResumption: true,
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
	})
}

// client originates mTLS to a server that must present one of the IDs (A42).
// Nothing is trusted where no ID is expected: the name asked for then is one
// that is never issued, since no name at all would be no check at all.
func client(td spiffeid.TrustDomain, ids []string, sni string) *corev3.TransportSocket {
	if len(ids) == 0 {
		ids = []string{td.IDString() + "/legation/nobody"}
	}
	names := make([]*tlsv3.SubjectAltNameMatcher, len(ids))
	for n, id := range ids {
		names[n] = uri(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id}})
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: common(names),
		Sni:              sni,
		MaxSessionKeys:   wrapperspb.UInt32(0),
	})
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(context)},
	}
}
