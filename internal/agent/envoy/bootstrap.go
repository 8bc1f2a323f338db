package envoy

import (
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	resourcesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/legation-io/legation/internal/accesslog"
	"github.com/legation-io/legation/internal/fault"
)

// maxSocketPath is what sun_path holds, less its NUL.
const maxSocketPath = 107

// DefaultMaxConnections bounds what one Envoy accepts, all listeners
// together: an unbounded proxy is an open door to memory exhaustion.
const DefaultMaxConnections = 50_000

// BootstrapParams says what differs between one Envoy and the next. Nothing
// here is secret: the kernel vouches for whoever connects to Socket.
type BootstrapParams struct {
	// NodeID is Envoy's node id, shown in logs; it grants nothing.
	NodeID string
	// NodeCluster is Envoy's node cluster; empty takes "legation".
	NodeCluster string
	// Socket is the session's Unix socket, where the agent serves ADS, SDS
	// and the access log service. At most 107 bytes.
	Socket string
	// AdminSocket is where Envoy makes its admin interface, mode 0600.
	AdminSocket string
	// MaxConnections over all listeners; 0 takes DefaultMaxConnections.
	MaxConnections int64
}

// Bootstrap returns Envoy's bootstrap as JSON: the static cluster "agent"
// over the session's socket, delta ADS for listeners and clusters over it
// (secrets follow over SDS, by what the listeners say), the admin interface
// on a 0600 Unix socket, and no secret.
func Bootstrap(p BootstrapParams) ([]byte, error) {
	if p.NodeID == "" {
		return nil, fault.New(fault.Invalid, "an Envoy bootstrap needs a node id")
	}
	for what, path := range map[string]string{"session socket": p.Socket, "admin socket": p.AdminSocket} {
		if path == "" || path[0] != '/' || len(path) > maxSocketPath {
			return nil, fault.New(fault.Invalid, "Envoy's %s %q: give an absolute path of at most %d bytes", what, path, maxSocketPath)
		}
	}
	if p.NodeCluster == "" {
		p.NodeCluster = "legation"
	}
	if p.MaxConnections == 0 {
		p.MaxConnections = DefaultMaxConnections
	}
	h2, err := anypb.New(agentProtocol())
	if err != nil {
		return nil, fmt.Errorf("compose Envoy's bootstrap: %w", err)
	}
	limit, err := anypb.New(&resourcesv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: p.MaxConnections})
	if err != nil {
		return nil, fmt.Errorf("compose Envoy's bootstrap: %w", err)
	}
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		// Zero waits for the first answer however long it takes: an Envoy
		// that goes LIVE without its listeners would look healthy.
		InitialFetchTimeout: durationpb.New(0),
	}
	b := &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Id: p.NodeID, Cluster: p.NodeCluster},
		Admin: &bootstrapv3.Admin{Address: pipe(p.AdminSocket, 0o600)},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{agentCluster(p.Socket, h2)},
		},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: ads,
			CdsConfig: ads,
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: accesslog.Cluster, RetryPolicy: reconnect()}}}},
			},
		},
		StatsConfig:        stats(),
		StatsFlushInterval: durationpb.New(10 * time.Second),
		LayeredRuntime:     layers(),
		OverloadManager: &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name:       "envoy.resource_monitors.global_downstream_max_connections",
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: limit}}}},
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fault.New(fault.Invalid, "Envoy's bootstrap: %w", err)
	}
	body, err := protojson.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	return body, nil
}

func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

// reconnect keeps an Envoy whose agent restarts close behind it: the default
// backs off up to 30 s.
func reconnect() *corev3.RetryPolicy {
	return &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
		BaseInterval: durationpb.New(50 * time.Millisecond), MaxInterval: durationpb.New(time.Second)}}
}

func agentProtocol() proto.Message {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
					// A socket whose other end hangs is noticed in 25 s.
					ConnectionKeepalive: &corev3.KeepaliveSettings{
						Interval: durationpb.New(20 * time.Second), Timeout: durationpb.New(5 * time.Second)},
				}}}}}
}

func agentCluster(socket string, h2 *anypb.Any) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 accesslog.Cluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: accesslog.Cluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: pipe(socket, 0)}}}}}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": h2},
	}
}

// stats keeps what the agent reports and the usual dashboards read. Per-listener
// histograms get few buckets: they are most of an idle Envoy's statistics.
func stats() *metricsv3.StatsConfig {
	return &metricsv3.StatsConfig{
		HistogramBucketSettings: []*metricsv3.HistogramBucketSettings{{
			Match:   &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".*"}}},
			Buckets: []float64{1, 5, 25, 100, 500, 2500, 10_000, 60_000},
		}},
	}
}

// layers is a static layer only: with none given Envoy adds one that the
// admin interface can write.
func layers() *bootstrapv3.LayeredRuntime {
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "static", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{}}}}}
}
