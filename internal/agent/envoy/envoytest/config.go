package envoytest

import (
	"testing"
	"time"

	accesslogcfgv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
)

// Any packs a message.
func Any(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Address is ip:port over TCP; "::" accepts IPv4 too.
func Address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}, Ipv4Compat: ip == "::"}}}
}

// AccessLog is the gRPC logger as the compiler configures it.
func AccessLog(t testing.TB, name string, tags []accesslog.Tag) *accesslogcfgv3.AccessLog {
	common := &alsv3.CommonGrpcAccessLogConfig{
		LogName: name, TransportApiVersion: corev3.ApiVersion_V3,
		BufferSizeBytes: wrapperspb.UInt32(0),
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: accesslog.Cluster}}},
	}
	for _, tag := range tags {
		common.CustomTags = append(common.CustomTags, &tracingv3.CustomTag{
			Tag: tag.Name, Type: &tracingv3.CustomTag_Value{Value: tag.Format}})
	}
	return &accesslogcfgv3.AccessLog{Name: "envoy.access_loggers.tcp_grpc",
		ConfigType: &accesslogcfgv3.AccessLog_TypedConfig{TypedConfig: Any(t, &alsv3.TcpGrpcAccessLogConfig{CommonConfig: common})}}
}

// UnmatchedLog is a listener's own log: connections that no chain takes.
func UnmatchedLog(t testing.TB, name string) *accesslogcfgv3.AccessLog {
	l := AccessLog(t, name, accesslog.Tags(name))
	l.Filter = &accesslogcfgv3.AccessLogFilter{FilterSpecifier: &accesslogcfgv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogcfgv3.ResponseFlagFilter{Flags: []string{"NR"}}}}
	return l
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// Peer says whom a listener or cluster trusts.
type Peer struct {
	Leaf *Leaf  // own certificate
	CA   *CA    // the peer's
	CRL  []byte // PEM, may be nil
	SAN  string // exact URI; empty accepts any identity of CA
}

func (p Peer) common() *tlsv3.CommonTlsContext {
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(p.CA.PEM())}
	if p.CRL != nil {
		v.Crl = inline(p.CRL)
	}
	if p.SAN != "" {
		v.MatchTypedSubjectAltNames = []*tlsv3.SubjectAltNameMatcher{{SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: p.SAN}}}}
	}
	return &tlsv3.CommonTlsContext{
		TlsParams:             &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificates:       []*tlsv3.TlsCertificate{{CertificateChain: inline(p.Leaf.CertPEM), PrivateKey: inline(p.Leaf.KeyPEM)}},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v},
	}
}

func tcpProxy(t testing.TB, prefix, cluster, log string, tags []accesslog.Tag) *listenerv3.Filter {
	p := &tcpproxyv3.TcpProxy{
		StatPrefix: prefix, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		AccessLogOptions: &tcpproxyv3.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true},
	}
	if log != "" {
		p.AccessLog = []*accesslogcfgv3.AccessLog{AccessLog(t, log, tags)}
	}
	return &listenerv3.Filter{Name: "envoy.filters.network.tcp_proxy",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: Any(t, p)}}
}

// Inbound is a listener that wants mTLS and forwards to a cluster.
func Inbound(t testing.TB, name, ip string, port uint32, cluster string, peer Peer) *listenerv3.Listener {
	tags := accesslog.Tags(accesslog.Inbound)
	f := tcpProxy(t, name, cluster, accesslog.Inbound, tags)
	p := &tcpproxyv3.TcpProxy{}
	if err := f.GetTypedConfig().UnmarshalTo(p); err != nil {
		t.Fatal(err)
	}
	p.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	p.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: Any(t, p)}
	down := &tlsv3.DownstreamTlsContext{
		CommonTlsContext: peer.common(), RequireClientCertificate: wrapperspb.Bool(true),
		SessionTicketKeysType:            &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true},
		DisableStatefulSessionResumption: true,
	}
	return &listenerv3.Listener{
		Name: name, Address: Address(ip, port),
		AccessLog: []*accesslogcfgv3.AccessLog{UnmatchedLog(t, accesslog.InboundListener)},
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{f},
			TransportSocket: &corev3.TransportSocket{Name: "envoy.transport_sockets.tls",
				ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: Any(t, down)}},
			TransportSocketConnectTimeout: durationpb.New(5 * time.Second),
		}},
	}
}

// Outbound is a plain listener that forwards to a cluster.
func Outbound(t testing.TB, name, ip string, port uint32, cluster string) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name, Address: Address(ip, port),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{
			tcpProxy(t, name, cluster, accesslog.Outbound, accesslog.Tags(accesslog.Outbound))}}},
	}
}

// Cluster is one static endpoint (none with an empty ip); with a peer it
// speaks mTLS.
func Cluster(t testing.TB, name, ip string, port uint32, peer *Peer) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout: durationpb.New(2 * time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: Address(ip, port)}}}}}}},
	}
	if ip == "" {
		c.LoadAssignment.Endpoints = nil
	}
	if peer != nil {
		c.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: Any(t, &tlsv3.UpstreamTlsContext{
				CommonTlsContext: peer.common(), MaxSessionKeys: wrapperspb.UInt32(0)})}}
	}
	return c
}
