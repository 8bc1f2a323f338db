package compile

import (
	"net/netip"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// handshakeTimeout ends a connection whose TLS handshake is not done (A34).
const handshakeTimeout = 10 * time.Second

// reminder is how often Envoy says again who is on a connection: an agent
// that was away when it was made, or has started since, learns it then.
const reminder = time.Minute

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// listener accepts on the addresses; the first names it in statistics.
func listener(name string, direction corev3.TrafficDirection, stat string, at ...netip.AddrPort) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, Address: address(at[0]), StatPrefix: stat, TrafficDirection: direction,
		// By default every worker binds for itself with SO_REUSEPORT, and so may
		// any other program of this user: it would get some of the connections,
		// and two Envoys would take them in turn. The workers share one socket.
		EnableReusePort: wrapperspb.Bool(false),
		// A peer that vanished is noticed: nothing else ends idle connections.
		TcpKeepalive: keepalive(),
	}
	for _, a := range at[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: address(a)})
	}
	return l
}

func keepalive() *corev3.TcpKeepalive {
	return &corev3.TcpKeepalive{
		KeepaliveTime: wrapperspb.UInt32(60), KeepaliveInterval: wrapperspb.UInt32(15), KeepaliveProbes: wrapperspb.UInt32(4),
	}
}

// captureListener takes what is redirected to its port. By its mark capture
// knows it from another program's that took the port while no proxy ran.
func captureListener(name string, direction corev3.TrafficDirection, stat string, at ...netip.AddrPort) *listenerv3.Listener {
	l := listener(name, direction, stat, at...)
	l.SocketOptions = marked("the proxy's own")
	l.ListenerFilters = originalDst()
	return l
}

// originalDst restores the address that a captured connection was made to,
// by which its filter chain is found.
func originalDst() []*listenerv3.ListenerFilter {
	return []*listenerv3.ListenerFilter{{
		Name:       "envoy.filters.listener.original_dst",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&originaldstv3.OriginalDst{})},
	}}
}

// tcpProxy forwards one connection to a cluster as one connection.
func tcpProxy(stat, cluster, log string, afterHandshake bool) []*listenerv3.Filter {
	p := &tcpproxyv3.TcpProxy{
		StatPrefix:       stat,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		// Programs hold connections for as long as they like.
		IdleTimeout:      durationpb.New(0),
		AccessLog:        []*accesslogv3.AccessLog{logTo(log)},
		AccessLogOptions: &tcpproxyv3.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true, AccessLogFlushInterval: durationpb.New(reminder)},
	}
	if afterHandshake {
		// So that the program never sees a peer that is not verified, and the
		// log entry at connect names the peer.
		p.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
		p.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	}
	return []*listenerv3.Filter{{
		Name:       "envoy.filters.network.tcp_proxy",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(p)},
	}}
}
