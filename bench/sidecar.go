package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/compile"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/freeport"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/legation-io/legation/internal/unixsocket"
	"google.golang.org/grpc"
)

// pair is two Envoys in the path of a request: enter at the address, leave
// to the backend.
type pair struct {
	name  string
	enter string
	pids  []int
	close func()
}

// compiled is the configuration of a subject as the control plane makes it.
func compiled(ctx context.Context, docs string, subjects ...*nodev1.Subject) ([][]*distribute.Resource, error) {
	store := memory.New()
	defer store.Close()
	c, err := catalog.Open(ctx, catalog.Params{Store: store, TrustDomain: benchDomain})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx) })
	defer running.Wait()
	defer cancel()
	_, problems, err := c.Apply(ctx, catalog.ApplyParams{Documents: []*adminv1.Document{{File: "bench.yaml", Content: []byte(docs)}}})
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("apply: line %d: %s: %s", problems[0].Line, problems[0].Field, problems[0].Message)
	}
	snapshot, _ := c.Snapshot()
	var out [][]*distribute.Resource
	for _, s := range subjects {
		resources, err := compile.Proxy(snapshot, s, compile.Options{TrustDomain: benchDomain, Node: "bench"})
		if err != nil {
			return nil, err
		}
		out = append(out, resources)
	}
	return out, nil
}

// ourPair is two sidecars as the product configures them: compiled
// resources, our bootstrap, secrets and listeners served by the agent's xDS
// door on a Unix socket each, access logs read by the agent's reader.
func ourPair(ctx context.Context, r *run, keys *pki, backend string) (_ *pair, err error) {
	outbound, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	inbound, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	port := netip.MustParseAddrPort(inbound).Port()
	docs := identity("web", "unix:uid:1") + identity("api", "unix:uid:2") + fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: api, namespace: bench}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: %d}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api-1, namespace: bench}
spec: {address: 127.0.0.1, labels: {app: api}, serviceAccount: api}
`, port)
	resources, err := compiled(ctx, docs,
		&nodev1.Subject{Id: "web", Entry: "bench/web", SpiffeId: idOf("web"), Mode: nodev1.Mode_MODE_EXPLICIT, Outbound: []*nodev1.Outbound{{Service: "api", Port: 80, Listen: outbound}}},
		&nodev1.Subject{Id: "api", Entry: "bench/api", SpiffeId: idOf("api"), Mode: nodev1.Mode_MODE_EXPLICIT, Inbound: []*nodev1.Inbound{{Listen: inbound, App: backend}}})
	if err != nil {
		return nil, err
	}
	p := &pair{name: "as we configure it", enter: outbound}
	var ends []func()
	p.close = func() {
		for _, end := range ends {
			end()
		}
	}
	for i, name := range []string{"web", "api"} {
		pid, end, err := sidecar(ctx, r, keys, name, resources[i])
		if err != nil {
			p.close()
			return nil, err
		}
		p.pids, ends = append(p.pids, pid), append(ends, end)
	}
	return p, nil
}

// sidecar runs one Envoy with an agent's doors in this process.
func sidecar(ctx context.Context, r *run, keys *pki, name string, resources []*distribute.Resource) (pid int, end func(), err error) {
	binary, err := r.envoy()
	if err != nil {
		return 0, nil, err
	}
	update, err := keys.update(name)
	if err != nil {
		return 0, nil, err
	}
	engine := distribute.New(distribute.Params{})
	engine.Replace("config", resources)
	engine.Replace("secrets", sds.Secrets(update, sds.SecretNames{}))
	door := sds.New(sds.Params{Engine: engine, Authorise: func(context.Context) (*sds.Attachment, error) {
		return &sds.Attachment{Subscriber: "envoy/" + name, Scopes: []distribute.Scope{"config", "secrets"}}, nil
	}})
	socket, admin := filepath.Join(r.dir, name+".sock"), filepath.Join(r.dir, name+".admin")
	l, err := unixsocket.Listen(socket, 0o600)
	if err != nil {
		return 0, nil, err
	}
	server := grpc.NewServer(sds.ServerOptions()...)
	door.Register(server)
	accesslogv3.RegisterAccessLogServiceServer(server, envoy.NewLogServer(envoy.LogServerParams{}))
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) })
	ctx, cancel := context.WithCancel(ctx)
	end = func() {
		cancel()
		server.Stop()
		running.Wait()
		door.Wait()
	}
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapParams{NodeID: name, Socket: socket, AdminSocket: admin})
	if err != nil {
		end()
		return 0, nil, err
	}
	process, err := envoy.NewProcess(envoy.ProcessParams{Binary: binary, Bootstrap: bootstrap, AdminSocket: admin, Grace: time.Second})
	if err != nil {
		end()
		return 0, nil, err
	}
	failed := make(chan error, 1)
	running.Go(func() { failed <- process.Run(ctx) })
	live, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := process.WaitLive(live); err != nil {
		end()
		return 0, nil, fmt.Errorf("sidecar of %s: %w (%v)", name, err, <-failed)
	}
	return process.PID(), end, nil
}
