package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/legation-io/legation/internal/freeport"
)

// plane is a real control plane in its own process, on loopback.
type plane struct {
	*child
	dir     string
	address string // of the agents' port
	socket  string // admin
	conn    *grpc.ClientConn
	admin   adminv1.AdminClient
}

// Limits out of the way, as they were for the peers' figures.
const planeConfig = `trustDomain: bench.test
dataDir: %[1]s/data
listen: %[2]s
metrics: ""
adminSocket: %[1]s/admin.sock
log: {level: warn}
limits: {csrsPerSecond: 1000000, attestationsPerMinute: 100000, streamsPerNode: 64, entriesPerNamespace: 100000, entriesPerNode: 20000}
`

func (r *run) binary(name string) (string, error) {
	path := filepath.Join(r.root, "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w; run: make build", err)
	}
	return path, nil
}

func startPlane(ctx context.Context, r *run) (_ *plane, err error) {
	binary, err := r.binary("legation")
	if err != nil {
		return nil, err
	}
	p := &plane{}
	if p.dir, err = os.MkdirTemp(r.dir, "plane"); err != nil {
		return nil, err
	}
	if p.address, err = freeport.Address(); err != nil {
		return nil, err
	}
	p.socket = filepath.Join(p.dir, "admin.sock")
	config := filepath.Join(p.dir, "server.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, planeConfig, p.dir, p.address), 0o600); err != nil {
		return nil, err
	}
	if p.child, err = startChild([]string{binary, "server", "--config", config}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := p.until(20*time.Second, "the control plane listens", func() bool { return listening("unix", p.socket) && listening("tcp", p.address) }); err != nil {
		return nil, err
	}
	if p.conn, err = grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, err
	}
	p.admin = adminv1.NewAdminClient(p.conn)
	_, err = p.admin.Status(ctx, &adminv1.StatusRequest{})
	return p, err
}

func (p *plane) close() error {
	if p == nil {
		return nil
	}
	if p.conn != nil {
		p.conn.Close()
	}
	err := p.stop()
	os.RemoveAll(p.dir)
	return err
}

// apply declares documents.
func (p *plane) apply(ctx context.Context, yaml string) error {
	res, err := p.admin.Apply(ctx, &adminv1.ApplyRequest{Documents: []*adminv1.Document{{File: "bench.yaml", Content: []byte(yaml)}}})
	if err != nil {
		return err
	}
	if problems := res.GetProblems(); len(problems) > 0 {
		return fmt.Errorf("apply: line %d: %s: %s", problems[0].Line, problems[0].Field, problems[0].Message)
	}
	return nil
}

// identity is a WorkloadIdentity of namespace bench on every node.
func identity(name, selector string) string {
	return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: %s, namespace: bench}\nspec: {node: \"*\", selectors: [%q]}\n---\n", name, selector)
}

// idOf is the SPIFFE ID that identity gives.
func idOf(name string) string { return "spiffe://bench.test/ns/bench/sa/" + name }

func listening(network, address string) bool {
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
