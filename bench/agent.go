package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// node is a real agent in its own process.
type node struct {
	*child
	dir, socket, config string
}

const agentConfig = `trustDomain: bench.test
servers: [%[2]q]
dataDir: %[1]s/data
socket: %[1]s/agent.sock
adminSocket: %[1]s/agent-admin.sock
joinTokenFile: %[1]s/token
bundleHash: %[3]q
metrics: ""
log: {level: warn}
`

// newNode prepares an agent with a fresh join token, not started yet.
func newNode(ctx context.Context, r *run, p *plane, name string) (*node, error) {
	dir, err := os.MkdirTemp(r.dir, "agent")
	if err != nil {
		return nil, err
	}
	n := &node{dir: dir, socket: filepath.Join(dir, "agent.sock"), config: filepath.Join(dir, "agent.yaml")}
	token, err := p.admin.CreateToken(ctx, &adminv1.CreateTokenRequest{Node: name})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token.GetToken()), 0o600); err != nil {
		return nil, err
	}
	return n, os.WriteFile(n.config, fmt.Appendf(nil, agentConfig, dir, p.address, token.GetBundleHash()), 0o600)
}

// start runs the agent and returns how long it took from the process's start
// to the answer of the Workload API: attested, signed and serving.
func (n *node) start(ctx context.Context, r *run) (time.Duration, error) {
	binary, err := r.binary("legation-agent")
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if n.child, err = startChild([]string{binary, "serve", "--config", n.config}); err != nil {
		return 0, err
	}
	if err := n.until(10*time.Second, "the agent listens", func() bool { return listening("unix", n.socket) }); err != nil {
		return 0, err
	}
	if _, err := firstSVID(ctx, n.socket); err != nil {
		return 0, fmt.Errorf("%w; the agent said:\n%s", err, n.output)
	}
	return time.Since(start), nil
}

func (n *node) close() {
	if n != nil {
		_ = n.stop()
		os.RemoveAll(n.dir)
	}
}

// self selects this process.
func self() string { return fmt.Sprintf("unix:uid:%d", os.Getuid()) }

// workloadStream opens FetchX509SVID on a connection of its own.
func workloadStream(ctx context.Context, socket string) (workload.SpiffeWorkloadAPI_FetchX509SVIDClient, func(), error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), time.Minute)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	end := func() { cancel(); conn.Close() }
	if err != nil {
		end()
		return nil, nil, err
	}
	return stream, end, nil
}

// firstSVID is how long one takes, from the connect to the answer.
func firstSVID(ctx context.Context, socket string) (time.Duration, error) {
	start := time.Now()
	stream, end, err := workloadStream(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer end()
	res, err := stream.Recv()
	if err == nil && len(res.GetSvids()) == 0 {
		err = errors.New("the Workload API answered without an SVID")
	}
	return time.Since(start), err
}
