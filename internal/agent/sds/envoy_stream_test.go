package sds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/envoytest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// open serves the engine on a socket path until stop is called.
func (r *rig) open(socket string) (stop func()) {
	r.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		r.Fatal(err)
	}
	s := New(Params{Engine: r.engine, Authorise: func(context.Context) (*Attachment, error) {
		return &Attachment{Subscriber: "envoy", Scopes: []distribute.Scope{mine}}, nil
	}})
	g := grpc.NewServer(ServerOptions()...)
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	return func() {
		g.Stop()
		s.Wait()
		<-done
	}
}

// An agent that restarts finds its Envoys serving, and sends nothing that
// they have.
func TestEnvoyReconnectsToANewDoorAndKeepsItsSecrets(t *testing.T) {
	r := newRig(t)
	r.socket = filepath.Join(envoytest.Dir(t), "sds.sock")
	trust := r.pki.trust()
	r.push(trust)
	stop := r.open(r.socket)
	r.start("DELTA_GRPC", "default", "ROOTCA")
	r.envoy.Ready()
	r.served("before", r.client, r.server)
	r.acked("default")
	stop()
	r.served("while the door is closed", r.client, r.server)

	const updates = "listener.127.0.0.1_0.server_ssl_socket_factory.ssl_context_update_by_sds"
	before, ok := r.envoy.Stat(updates)
	if !ok {
		t.Fatalf("no stat %s", updates)
	}
	var sent atomic.Int32
	r.engine = distribute.New(distribute.Params{OnStatus: func(lines []distribute.Status) {
		for _, l := range lines {
			if l.Sent != l.Acked {
				sent.Add(1)
			}
		}
	}})
	r.push(trust)
	defer r.open(r.socket)()
	r.acked("default")
	r.acked("ROOTCA")
	if after, _ := r.envoy.Stat(updates); after != before || sent.Load() != 0 {
		t.Errorf("%d secrets were sent again and Envoy made %d new contexts", sent.Load(), after-before)
	}
	r.server = r.pki.svid("/ns/a/sa/server")
	r.push(r.pki.trust(r.client))
	r.refused("a revocation after the restart", r.client, "revoked certificate")
}

// Envoy warms a changed cluster anew and wants its endpoints again, although
// they did not change (xDS protocol, "Resource warming").
func TestEnvoyWarmsAChangedClusterWithUnchangedEndpoints(t *testing.T) {
	for _, api := range []string{"DELTA_GRPC", "GRPC"} {
		t.Run(api, func(t *testing.T) {
			r := newRig(t)
			push := func(timeout time.Duration) {
				ads := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
				r.engine.Replace(mine, []*distribute.Resource{
					resource(t, typeCluster, "c", &clusterv3.Cluster{Name: "c", ConnectTimeout: durationpb.New(timeout),
						ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
						EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads}}),
					resource(t, typeEndpoint, "c", &endpointv3.ClusterLoadAssignment{ClusterName: "c"}),
				})
			}
			active := func(timeout string) {
				t.Helper()
				begin := time.Now()
				r.envoy.Until("the cluster is active with "+timeout, func() error {
					if d := r.envoy.Admin("/config_dump?resource=dynamic_active_clusters"); !strings.Contains(d, `"connect_timeout": "`+timeout+`"`) {
						return errors.New(d)
					}
					return nil
				})
				t.Logf("active with %s after %s", timeout, time.Since(begin).Round(time.Millisecond))
				if d := time.Since(begin); d > 12*time.Second { // it waits for 15
					t.Errorf("only after %s: Envoy waited for endpoints that did not come", d)
				}
			}
			push(2 * time.Second)
			r.envoy = envoytest.Start(t, fmt.Sprintf(`
node: {id: rig, cluster: rig}
dynamic_resources:
  ads_config: {api_type: %s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
static_resources: {clusters: [%s]}
`, api, strings.ReplaceAll(sdsCluster, "SOCKET", r.socket)), envoytest.Options{})
			active("2s")
			push(3 * time.Second)
			active("3s")
			push(4 * time.Second)
			active("4s")
		})
	}
}

func resource(t testing.TB, typ, name string, m proto.Message) *distribute.Resource {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return distribute.NewResource(typ, name, body)
}
