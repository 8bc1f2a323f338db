package sds

import (
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestEndpointNamesOfClusters(t *testing.T) {
	eds := func(service string) *clusterv3.Cluster {
		return &clusterv3.Cluster{Name: "c", AltStatName: "x", ConnectTimeout: durationpb.New(time.Second),
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: service}}
	}
	for name, c := range map[string]struct {
		cluster *distribute.Resource
		want    []string
	}{
		"the cluster's own name":       {resource(t, typeCluster, "c", eds("")), []string{"c"}},
		"the service name where given": {resource(t, typeCluster, "c", eds("s")), []string{"s"}},
		"none without EDS":             {resource(t, typeCluster, "c", &clusterv3.Cluster{Name: "c"}), nil},
		"none of what is no cluster":   {distribute.NewResource(typeCluster, "c", []byte{0x1a, 0xff}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := endpointNames([]*distribute.Resource{c.cluster}); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
