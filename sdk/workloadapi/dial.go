package workloadapi

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/metadata"
)

// maxMessage bounds one answer; revocation lists can be large.
const maxMessage = 64 << 20

// Address is addr itself, or what SPIFFE_ENDPOINT_SOCKET says when addr is
// empty (SPIFFE Workload Endpoint 4). The error of an address that is neither
// "unix:///path" nor "tcp://ip:port" says what is wrong with it.
func Address(addr string) (string, error) {
	if addr == "" {
		addr = os.Getenv(workloadapi.SocketEnv)
	}
	if addr == "" {
		return "", fmt.Errorf("no Workload API address: give one or set %s, e.g. unix:///run/legation/agent.sock", workloadapi.SocketEnv)
	}
	if err := workloadapi.ValidateAddress(addr); err != nil {
		return "", fmt.Errorf("workload API address %q: %w", addr, err)
	}
	return addr, nil
}

// Dial returns a connection to the socket at addr ("" takes
// SPIFFE_ENDPOINT_SOCKET) on which every call carries the security header of
// SPIFFE Workload Endpoint 3, "workload.spiffe.io: true". It serves the
// Workload API and the services of legation.workload.v1 alike; whoever dials
// closes. Nothing is connected before the first call; the kernel attests the
// caller, so the socket itself needs no TLS.
//
// A call fails at once with Unavailable while nobody listens; give it
// grpc.WaitForReady(true) and a deadline to wait instead.
func Dial(addr string) (*grpc.ClientConn, error) {
	addr, err := Address(addr)
	if err != nil {
		return nil, err
	}
	target, err := workloadapi.TargetFromAddress(addr)
	if err != nil {
		return nil, fmt.Errorf("workload API address %q: %w", addr, err)
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The environment's HTTP proxy has no business with a local socket.
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Answers hold private keys: their bytes go into buffers that are
		// wiped, and through no read buffer that all connections share.
		experimental.WithBufferPool(wipingPool{}),
		grpc.WithReadBufferSize(0),
		grpc.WithChainUnaryInterceptor(unaryHeader),
		grpc.WithChainStreamInterceptor(streamHeader),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("workload API at %s: %w", addr, err)
	}
	return conn, nil
}

// Name and value of the security header.
const (
	headerName  = "workload.spiffe.io"
	headerValue = "true"
)

func withHeader(ctx context.Context) context.Context {
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get(headerName)) > 0 {
		return ctx // twice would be refused
	}
	return metadata.AppendToOutgoingContext(ctx, headerName, headerValue)
}

func unaryHeader(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(withHeader(ctx), method, req, reply, conn, opts...)
}

func streamHeader(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(withHeader(ctx), desc, conn, method, opts...)
}
