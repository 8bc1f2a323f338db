package sds

import (
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/encoding/protowire"
)

// endpointNames are the names of the endpoints that the clusters ask for. An
// Envoy that gets a changed cluster warms it anew and waits up to 15 s for its
// endpoints, also when it has them, and does not ask again: they must be
// repeated (xDS protocol, "Resource warming").
func endpointNames(clusters []*distribute.Resource) []string {
	var out []string
	for _, c := range clusters {
		if config, ok := field(c.Body, 3); ok { // Cluster.eds_cluster_config
			name := c.Name
			if service, ok := field(config, 2); ok && len(service) > 0 { // EdsClusterConfig.service_name
				name = string(service)
			}
			out = append(out, name)
		}
	}
	return out
}

// field returns the last length-delimited field with the number, without
// decoding the rest.
func field(b []byte, number protowire.Number) (value []byte, ok bool) {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, false
		}
		b = b[size:]
		if n == number && typ == protowire.BytesType {
			v, size := protowire.ConsumeBytes(b)
			if size < 0 {
				return nil, false
			}
			value, ok, b = v, true, b[size:]
			continue
		}
		if size = protowire.ConsumeFieldValue(n, typ, b); size < 0 {
			return nil, false
		}
		b = b[size:]
	}
	return value, ok
}
