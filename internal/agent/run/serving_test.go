package run

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/envoytest"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/freeport"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// late answers once it is released.
type late struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	release chan struct{}
}

func (l late) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	select {
	case <-l.release:
	case <-stream.Context().Done():
		return nil
	}
	body, err := anypb.New(&endpointv3.ClusterLoadAssignment{ClusterName: "held"})
	if err == nil {
		err = stream.Send(&discoveryv3.DiscoveryResponse{VersionInfo: "1", Nonce: "1", TypeUrl: r.TypeUrl, Resources: []*anypb.Any{body}})
	}
	<-stream.Context().Done()
	return err
}

// Between bind and listen Envoy waits for its secrets. Whoever listens first
// in that time has the port, although Envoy took its configuration.
func TestAPortLostBetweenBindAndListenIsNoticed(t *testing.T) {
	at, err := freeport.Address()
	must(t, err)
	other, err := freeport.Address()
	must(t, err)
	release := make(chan struct{})
	socket := filepath.Join(envoytest.Dir(t), "ads.sock")
	ads, err := net.Listen("unix", socket)
	must(t, err)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, late{release: release})
	go func() { _ = server.Serve(ads) }() // ends with the test
	t.Cleanup(server.Stop)
	listener := func(at string) string {
		host, port, _ := net.SplitHostPort(at)
		return fmt.Sprintf(`{name: "outbound|%s", enable_reuse_port: false, address: {socket_address: {address: %s, port_value: %s}}, filter_chains: [{filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: held}}]}]}`, at, host, port)
	}
	e := envoytest.Start(t, `
node: {id: t, cluster: t}
dynamic_resources: {ads_config: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: ads}}]}}
static_resources:
  listeners: [`+listener(at)+`, `+listener(other)+`]
  clusters:
  - {name: held, type: EDS, eds_cluster_config: {eds_config: {initial_fetch_timeout: 0s, resource_api_version: V3, ads: {}}}}
  - name: ads
    load_assignment: {cluster_name: ads, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: `+socket+`}}}}]}]}
    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}
`, envoytest.Options{NoWait: true})
	admin := envoy.NewAdmin(filepath.Join(e.Dir, "admin.sock"))
	e.Until("Envoy waits, bound", func() error {
		state, err := admin.State(t.Context())
		if err == nil && state == "LIVE" {
			t.Fatal("it does not wait")
		}
		return err
	})
	l, err := net.Listen("tcp", at) // SO_REUSEADDR, as Envoy
	must(t, err)
	defer l.Close()
	close(release)

	p, err := envoy.NewProcess(envoy.ProcessParams{Binary: "unused", Bootstrap: []byte("unused"), AdminSocket: filepath.Join(e.Dir, "admin.sock")})
	must(t, err)
	s := &session{proxy: p, Options: Options{Mode: nodev1.Mode_MODE_EXPLICIT, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Outbound: []*nodev1.Outbound{{Listen: at}, {Listen: other}}}}
	ctx, cancel := context.WithTimeout(t.Context(), envoytest.Patience)
	defer cancel()
	if err := s.serving(ctx); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), at) || strings.Contains(err.Error(), other) {
		t.Errorf("%v", err)
	}
}

// silent is an agent that takes a session and says nothing.
type silent struct {
	localv1.UnimplementedSessionsServer
}

func (silent) Open(stream localv1.Sessions_OpenServer) error {
	<-stream.Context().Done()
	return nil
}

func TestWhoIsLateIsToldForWantOfWhat(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errLate)
	never := make(chan struct{})
	proxy, err := envoy.NewProcess(envoy.ProcessParams{Binary: "none", Bootstrap: []byte("none"), AdminSocket: "none"})
	must(t, err)
	s := &session{proxy: proxy, ready: never, child: &child{cmd: exec.Command("none"), path: "none"}, Options: Options{ReadyTimeout: time.Minute, Socket: filepath.Join(envoytest.Dir(t), "agent.sock")}}
	s.child.cmd.Process = &os.Process{Pid: 1}

	l, err := net.Listen("unix", s.Socket)
	must(t, err)
	server := grpc.NewServer()
	localv1.RegisterSessionsServer(server, silent{})
	go func() { _ = server.Serve(l) }() // ends with the test
	t.Cleanup(server.Stop)
	says := func(name string, err error, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v does not say %q", name, err, text)
			}
		}
	}
	says("an agent that says nothing", s.open(t.Context(), ctx), "no identity within 1m0s", s.Socket)

	s.attested = &localv1.Attested{SpiffeId: "spiffe://example.org/a", Session: "4f2a"}
	err = s.waitReady(ctx, t.Context())
	says("an Envoy that does not run", err, "the program is spiffe://example.org/a", "its proxy was not ready within 1m0s", "Envoy does not run", "session 4f2a")
	if strings.Contains(err.Error(), "no identity") {
		t.Errorf("%v: it has one", err)
	}
	said := "the control plane refuses to configure this proxy"
	s.warning.Store(&said)
	says("what the agent said", s.waitReady(ctx, t.Context()), said)

	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(fault.New(fault.Unavailable, "%w", errInterrupted{syscall.SIGINT}))
	says("whoever was interrupted", s.waitReady(interrupted, t.Context()), "interrupted")
}
