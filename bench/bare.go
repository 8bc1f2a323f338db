package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"os"

	"github.com/legation-io/legation/internal/unixsocket"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// bare is the floor of the Workload API: a gRPC server in a process of its
// own that always answers the same and asks nothing.
type bare struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	answer *workload.X509SVIDResponse
}

func (b *bare) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	if err := stream.Send(b.answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// bareCommand is the hidden first argument that makes this program the floor:
// bareCommand SOCKET BYTES.
const bareCommand = "bare-workload-api"

func serveBare(socket, size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	l, err := unixsocket.Listen(socket, 0o600)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, &bare{answer: &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{X509Svid: make([]byte, n)}}}})
	return server.Serve(l)
}

// startBare serves as many bytes as the agent's answer has.
func startBare(ctx context.Context, r *run, n *node) (socket string, c *child, err error) {
	stream, done, err := workloadStream(ctx, n.socket)
	if err != nil {
		return "", nil, err
	}
	defer done()
	answer, err := stream.Recv()
	if err != nil {
		return "", nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(r.dir, "bare.sock")
	if c, err = startChild([]string{self, bareCommand, socket, fmt.Sprint(proto.Size(answer))}); err != nil {
		return "", nil, err
	}
	if err := c.until(5*time.Second, "the floor listens", func() bool { return listening("unix", socket) }); err != nil {
		_ = c.stop()
		return "", nil, err
	}
	return socket, c, nil
}
