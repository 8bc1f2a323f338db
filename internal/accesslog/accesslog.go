// Package accesslog is the agreement between the compiler that configures
// Envoy's access logs and the agent that reads them: the names of the logs,
// the names of the tags and the formatters that fill them. It knows no
// protobuf. Everything here was tried on Envoy 1.40.
//
// What the compiler writes so that the agent knows who is on each live
// connection, from the moment both handshakes are done:
//
//	access logger  name envoy.access_loggers.tcp_grpc, TcpGrpcAccessLogConfig.common_config:
//	               log_name (below), transport_api_version V3,
//	               grpc_service.envoy_grpc.cluster_name = Cluster,
//	               buffer_size_bytes 0 (each entry is sent at once: 1 to 2 ms),
//	               custom_tags {tag: Name, value: Format} for each of Tags(log name)
//	tcp_proxy      access_log = [that], access_log_options.flush_access_log_on_connected
//	inbound also   upstream_connect_mode ON_DOWNSTREAM_TLS_HANDSHAKE and
//	               max_early_data_bytes 0; without them the entry at connect
//	               comes before the handshake and names nobody
//	Listener       access_log = [a logger named …Listener, with filter
//	               response_flag_filter {flags: [NR]}]: connections that no
//	               filter chain takes. Without the filter each connection
//	               would be told twice.
//
// A handshake that fails inbound appears in tcp_proxy's log, one entry of
// type TcpConnectionEnd with downstream_transport_failure_reason; one that
// fails outbound likewise, with upstream_transport_failure_reason. A TLS 1.3
// server that refuses our certificate does so after our side's handshake is
// done: outbound that is a TcpUpstreamConnected entry and an end a
// millisecond later, with no reason; the server's log has it.
//
// Envoy refuses a listener with a formatter it does not know ("Not supported
// field in StreamInfo"): UPSTREAM_PEER_SERIAL does not exist in 1.40, hence
// the whole certificate in TagUpstreamCert. DOWNSTREAM_HANDSHAKE_DURATION and
// COMMON_DURATION are accepted and always "-" for TCP.
package accesslog

// Cluster is the static cluster of the bootstrap that leads to the agent:
// ADS, SDS and the access log service.
const Cluster = "agent"

// Stat prefixes of listeners (Listener.stat_prefix), so that statistics read
// listener.inbound.… whatever the address. Draining waits for the first.
const (
	StatInbound  = "inbound"
	StatOutbound = "outbound"
)

// Names of the logs (log_name): which direction, and whether tcp_proxy or
// the listener wrote the entry.
const (
	Inbound          = "legation.inbound"           // tcp_proxy of a chain that terminates mTLS
	Outbound         = "legation.outbound"          // tcp_proxy of a chain that originates mTLS
	InboundListener  = "legation.inbound.listener"  // no inbound chain matched
	OutboundListener = "legation.outbound.listener" // no outbound chain matched
)

// Names of tags. The rest of an entry (addresses, TLS version and cipher of
// the downstream side, its SANs, response flags, failure reasons, stream id)
// is in the standard fields of TCPAccessLogEntry.
const (
	// TagDirectLocal is the address the kernel's socket has, "ip:port" or
	// "[ip]:port". The standard field has the original destination where
	// the connection was captured.
	TagDirectLocal = "direct_local"
	// TagSerial is the peer certificate's serial, lower-case hex.
	TagSerial = "peer_serial"
	// TagGroup is the key exchange group, e.g. X25519MLKEM768.
	TagGroup = "tls_group"
	// TagEmitted is when Envoy wrote the entry, Unix time as
	// "seconds.microseconds". At connect, less start_time, it is how long
	// accept, handshake and the connection onward took.
	TagEmitted = "emitted"

	// TagUpstreamURI is the URI SAN of the server we connected to.
	TagUpstreamURI = "upstream_uri"
	// TagUpstreamCert is its certificate, URL-encoded PEM.
	TagUpstreamCert = "upstream_cert"
	// TagUpstreamVersion is e.g. TLSv1.3.
	TagUpstreamVersion = "upstream_tls_version"
	// TagUpstreamCipher is e.g. TLS_AES_128_GCM_SHA256.
	TagUpstreamCipher = "upstream_tls_cipher"
	// TagUpstreamGroup is the key exchange group.
	TagUpstreamGroup = "upstream_tls_group"
)

// Tag is one custom tag of a gRPC access logger: CustomTag{tag: Name,
// value: Format}. Envoy writes "-" for what it does not know.
type Tag struct {
	Name   string
	Format string
}

// Tags returns the tags of a log, in a fixed order.
func Tags(log string) []Tag {
	switch log {
	case Inbound:
		return []Tag{
			{TagDirectLocal, "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%"},
			{TagSerial, "%DOWNSTREAM_PEER_SERIAL%"},
			{TagGroup, "%DOWNSTREAM_TLS_GROUP%"},
			{TagEmitted, "%EMIT_TIME(%s.%6f)%"},
		}
	case Outbound:
		return []Tag{
			{TagDirectLocal, "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%"},
			{TagUpstreamURI, "%UPSTREAM_PEER_URI_SAN%"},
			{TagUpstreamCert, "%UPSTREAM_PEER_CERT%"},
			{TagUpstreamVersion, "%UPSTREAM_TLS_VERSION%"},
			{TagUpstreamCipher, "%UPSTREAM_TLS_CIPHER%"},
			{TagUpstreamGroup, "%UPSTREAM_TLS_GROUP%"},
			{TagEmitted, "%EMIT_TIME(%s.%6f)%"},
		}
	}
	return []Tag{{TagDirectLocal, "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%"}}
}
