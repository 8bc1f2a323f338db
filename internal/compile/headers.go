package compile

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	statevaluev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legation-io/legation/internal/accesslog"
)

// Identity headers (sdk/propagation has the same names). A port that asks for
// them is served in two steps, so that the connection's log, by which its peer
// is known and a revocation ends it, is the same as everywhere:
//
//	mTLS chain: keep the peer's URI  ──►  listener inside Envoy: HTTP, headers  ──►  program
//
// The inner listener has no address. Only the first step leads to it.
const peerState = "legation.peer"

// setHeaders carry the peer's SPIFFE ID.
var setHeaders = []string{"spiffe-id", "workload-id"}

// removedHeaders are all spellings that a program may take for an identity header:
// CGI and WSGI make dashes and underscores one.
var removedHeaders = func() []string {
	var all []string
	for _, name := range append([]string{"x-forwarded-client-cert"}, setHeaders...) {
		all = append(all, spellings(name)...)
	}
	// The chain of tokens is the program's to verify; only its lookalikes go.
	return append(all, spellings("x-workload-identity")[1:]...)
}()

// spellings are a name with each of its dashes an underscore or not, the name
// itself first, and as gRPC's binary metadata.
func spellings(name string) []string {
	all := []string{""}
	for i := range len(name) {
		var next []string
		for _, s := range all {
			next = append(next, s+name[i:i+1])
			if name[i] == '-' {
				next = append(next, s+"_")
			}
		}
		all = next
	}
	for _, s := range all[:len(all):len(all)] {
		all = append(all, s+"-bin", s+"_bin")
	}
	return all
}

// inner names the listener and the cluster between the two steps.
func (in inbound) inner() string { return fmt.Sprintf("http|%d", in.app.Port()) }

// keepPeer remembers who is on a connection for the inner listener.
func keepPeer() *listenerv3.Filter {
	return &listenerv3.Filter{
		Name: "envoy.filters.network.set_filter_state",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&setstatev3.Config{
			OnDownstreamTlsHandshake: []*statevaluev3.FilterStateValue{{
				Key:        &statevaluev3.FilterStateValue_ObjectKey{ObjectKey: peerState},
				FactoryKey: "envoy.string",
				Value: &statevaluev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
					Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
						Specifier: &corev3.DataSource_InlineString{InlineString: "%DOWNSTREAM_PEER_URI_SAN%"}}}}},
				SharedWithUpstream: statevaluev3.FilterStateValue_ONCE,
			}},
		})},
	}
}

// innerCluster leads into Envoy itself, with what keepPeer kept.
func innerCluster(in inbound) *clusterv3.Cluster {
	c := newCluster(in.inner(), false)
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	c.TransportSocket = &corev3.TransportSocket{
		Name: "envoy.transport_sockets.internal_upstream",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&internalv3.InternalUpstreamTransport{
			TransportSocket: &corev3.TransportSocket{
				Name:       "envoy.transport_sockets.raw_buffer",
				ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawv3.RawBuffer{})},
			},
		})},
	}
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: c.Name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
					AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: in.inner()},
				}}},
			}},
		}}}},
	}
	return c
}

// innerListener reads HTTP and says who calls.
func innerListener(in inbound) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: in.inner(), StatPrefix: in.inner(), TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
		FilterChains: []*listenerv3.FilterChain{{
			Name: in.inner(),
			Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(manager(in))},
			}},
		}},
	}
}

// manager changes nothing of a request but its identity headers, as far as
// Envoy can.
func manager(in inbound) *hcmv3.HttpConnectionManager {
	none := durationpb.New(0)
	var add []*corev3.HeaderValueOption
	for _, name := range setHeaders {
		add = append(add, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: name, Value: "%FILTER_STATE(" + peerState + ":PLAIN)%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return &hcmv3.HttpConnectionManager{
		StatPrefix: in.inner(),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name:                   in.inner(),
			RequestHeadersToRemove: removedHeaders,
			RequestHeadersToAdd:    add,
			VirtualHosts: []*routev3.VirtualHost{{
				Name: "program", Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
					Action: &routev3.Route_Route{Route: &routev3.RouteAction{
						ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: in.cluster()},
						Timeout:          none,
						// A connection that the program closed while it was idle.
						RetryPolicy: &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: wrapperspb.UInt32(1)},
					}},
				}},
			}},
		}},
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilter("envoy.filters.http.header_mutation", pack(&headermutationv3.HeaderMutation{
				Mutations: &headermutationv3.Mutations{RequestTrailersMutations: removals(append(spellings("x-workload-identity")[:1:1], removedHeaders...))},
			})),
			httpFilter("envoy.filters.http.router", pack(&routerv3.Router{SuppressEnvoyHeaders: true})),
		},
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{AcceptHttp_10: true},
		// Programs hold connections and streams for as long as they like.
		CommonHttpProtocolOptions:  &corev3.HttpProtocolOptions{IdleTimeout: none},
		StreamIdleTimeout:          none,
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		GenerateRequestId:          wrapperspb.Bool(false),
		PreserveExternalRequestId:  true,
		SkipXffAppend:              true,
		UseRemoteAddress:           wrapperspb.Bool(false),
		Proxy_100Continue:          true,
		ForwardClientCertDetails:   hcmv3.HttpConnectionManager_SANITIZE,
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
	}
}

func httpFilter(name string, config *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
}

func removals(names []string) []*mutationv3.HeaderMutation {
	all := make([]*mutationv3.HeaderMutation, len(names))
	for n, name := range names {
		all[n] = &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
	}
	return all
}

// speakAsCaller has the program spoken to in the version of HTTP that the
// caller chose.
func speakAsCaller(c *clusterv3.Cluster) {
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
				UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
					HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}},
		}),
	}
}

// inboundFilters are what a connection goes through after its handshake.
func inboundFilters(in inbound) []*listenerv3.Filter {
	if !in.headers {
		return tcpProxy(in.cluster(), in.cluster(), accesslog.Inbound, true)
	}
	return append([]*listenerv3.Filter{keepPeer()}, tcpProxy(in.cluster(), in.inner(), accesslog.Inbound, true)...)
}
