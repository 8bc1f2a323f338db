package envoy

import (
	"encoding/json"
	"fmt"

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
	ads := object{
		"ads": object{}, "resource_api_version": "V3",
		// Zero waits for the first answer however long it takes: an Envoy
		// that goes LIVE without its listeners would look healthy.
		"initial_fetch_timeout": "0s",
	}
	body, err := json.Marshal(object{
		"node":             object{"id": p.NodeID, "cluster": p.NodeCluster},
		"admin":            object{"address": pipe(p.AdminSocket, 0o600)},
		"static_resources": object{"clusters": []object{agentCluster(p.Socket)}},
		"dynamic_resources": object{
			"lds_config": ads, "cds_config": ads,
			"ads_config": object{
				"api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []object{{"envoy_grpc": object{"cluster_name": accesslog.Cluster, "retry_policy": reconnect}}},
			},
		},
		// Listeners within Envoy: ports whose programs are told by headers who
		// calls are served in two steps.
		"bootstrap_extensions": []object{{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
		}},
		"stats_config":         stats,
		"stats_flush_interval": "10s",
		// A static layer only: with none given Envoy adds one that the admin
		// interface can write. Which peers are workloads is a regular
		// expression around the trust domain, whose name alone can be longer
		// than the 100 instructions that Envoy allows by itself.
		"layered_runtime": object{"layers": []object{{"name": "static", "static_layer": object{
			"re2.max_program_size.error_level": 1000,
			// A listener within Envoy that closes after its last answer is not a
			// reset: the answer would be lost (Envoy 1.40, tried).
			"envoy.reloadable_features.enable_send_rst_on_user_space_socket": false,
		}}}},
		"overload_manager": object{"resource_monitors": []object{{
			"name": "envoy.resource_monitors.global_downstream_max_connections",
			"typed_config": object{
				"@type":                             "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
				"max_active_downstream_connections": p.MaxConnections,
			},
		}}},
	})
	if err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	return body, nil
}

// object is a JSON object of envoy.config.bootstrap.v3.Bootstrap, which is
// written by hand: its Go types would be a seventh of the agent's binary. A
// test has the real Envoy accept it.
type object map[string]any

func pipe(path string, mode uint32) object {
	return object{"pipe": object{"path": path, "mode": mode}}
}

// reconnect keeps an Envoy whose agent restarts close behind it: the default
// backs off up to 30 s.
var reconnect = object{"retry_back_off": object{"base_interval": "0.050s", "max_interval": "1s"}}

func agentCluster(socket string) object {
	return object{
		"name": accesslog.Cluster, "type": "STATIC", "connect_timeout": "1s",
		"load_assignment": object{
			"cluster_name": accesslog.Cluster,
			"endpoints":    []object{{"lb_endpoints": []object{{"endpoint": object{"address": pipe(socket, 0)}}}}},
		},
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{
				// A socket whose other end hangs is noticed in 25 s.
				"connection_keepalive": object{"interval": "20s", "timeout": "5s"},
			}},
		}},
	}
}

// stats keeps what the agent reports and the usual dashboards read. Per-listener
// histograms get few buckets: they are most of an idle Envoy's statistics.
var stats = object{"histogram_bucket_settings": []object{{
	"match":   object{"safe_regex": object{"regex": ".*"}},
	"buckets": []float64{1, 5, 25, 100, 500, 2500, 10_000, 60_000},
}}}
