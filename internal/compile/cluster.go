package compile

import (
	"net/netip"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const connectTimeout = 5 * time.Second

// maxConnections bounds each cluster. Envoy's own 1,024 would refuse a busy
// program what it had without the proxy.
const maxConnections = 65_536

// newCluster is what all clusters have in common.
func newCluster(name string, mark bool) *clusterv3.Cluster {
	limit := wrapperspb.UInt32(maxConnections)
	c := &clusterv3.Cluster{
		Name:           name,
		ConnectTimeout: durationpb.New(connectTimeout),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: limit, MaxPendingRequests: limit, MaxRequests: limit}}},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 0}},
	}
	if mark {
		c.UpstreamBindConfig = &corev3.BindConfig{SocketOptions: marked("not to be captured again")}
	}
	return c
}

// marked are the socket options by which capture knows what is the proxy's.
func marked(why string) []*corev3.SocketOption {
	const solSocket, soMark = 1, 36 // asm-generic/socket.h
	return []*corev3.SocketOption{{
		Description: why, Level: solSocket, Name: soMark, State: corev3.SocketOption_STATE_PREBIND,
		Value: &corev3.SocketOption_IntValue{IntValue: Mark}}}
}

// appCluster leads to the program, in plaintext, on loopback; with http also
// by requests.
func appCluster(in inbound, http, mark bool) *clusterv3.Cluster {
	c := newCluster(in.cluster(), mark)
	if http {
		speakAsCaller(c)
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	c.LoadAssignment = assignment(c.Name, []netip.AddrPort{in.app})
	return c
}

func assignment(name string, at []netip.AddrPort) *endpointv3.ClusterLoadAssignment {
	a := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	if len(at) == 0 {
		return a
	}
	group := &endpointv3.LocalityLbEndpoints{}
	for _, e := range at {
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e)}}})
	}
	a.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	return a
}

// peer is what clusters to other workloads have in common.
func (d destination) peer(name string) *clusterv3.Cluster {
	c := newCluster(name, d.mark)
	c.TransportSocket = client(d.trustDomain, d.ids, d.sni())
	c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive()}
	c.CloseConnectionsOnHostHealthFailure = true
	return c
}

// balanced spreads connections over the destination's endpoints.
func (d destination) balanced() *clusterv3.Cluster {
	c := d.peer(d.cluster())
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()}
	c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	// An endpoint that is declared no more takes no more connections.
	c.IgnoreHealthOnHostRemoval = true
	return c
}

// direct goes to the very endpoint that the program connected to.
func (d destination) direct() *clusterv3.Cluster {
	c := d.peer(d.directCluster())
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	c.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	return c
}
