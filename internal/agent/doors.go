package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/cutoff"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// door is one of the agent's gRPC servers: for everybody on this machine, for
// its owner, and, where configured, SDS over TCP.
type door struct {
	name     string
	server   *grpc.Server
	listener *cutoff.Listener
}

// stop ends every call. No handler runs when it returns.
func stop(doors []door) {
	var stopping sync.WaitGroup
	for _, d := range doors {
		stopping.Go(func() {
			d.listener.Cut()
			d.server.Stop()
		})
	}
	stopping.Wait()
}

// publicMatrix is who may call what on the public socket.
func publicMatrix() (*callers.Matrix, error) {
	return callers.New([]protoreflect.FileDescriptor{localv1.File_api_local_v1_local_proto}, callers.WorkloadAPI, callers.WorkloadExtensions, callers.SDS, callers.ADS, callers.Health)
}

func (a *agent) refusedCall(_ context.Context, method string, i callers.Identity, err error) {
	level := slog.LevelWarn
	ok, left := a.talk.Allow(method + " " + i.String()) // any local process can call over and over
	if !ok {
		level = slog.LevelDebug
	}
	a.log.Log(context.Background(), level, "call refused", "audit", true, "method", method, "caller", i.String(), "error", err, "left_out", left)
}

// doors makes the servers; secrets may be nil.
func (a *agent) doors(public, owner, secrets net.Listener) ([]door, error) {
	matrix, err := publicMatrix()
	if err != nil {
		return nil, err
	}
	unary, stream := matrix.Interceptors(callers.As(callers.Workload), a.refusedCall)
	everybody := grpc.NewServer(append(doorOptions(), grpc.Creds(workload.NewCredentials(a.attestor)), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	a.api.Register(everybody)
	a.sds.Register(everybody)
	localv1.RegisterSessionsServer(everybody, a.sessions)

	unary, stream = matrix.Interceptors(callers.As(callers.Owner), a.refusedCall)
	admin := grpc.NewServer(append(doorOptions(), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	localv1.RegisterAgentAdminServer(admin, &agentAdmin{agent: a})
	for _, g := range []*grpc.Server{everybody, admin} {
		if err := matrix.CheckRegistered(g.GetServiceInfo()); err != nil {
			return nil, err
		}
	}
	list := []door{{"socket", everybody, cutoff.New(public)}, {"admin socket", admin, cutoff.New(owner)}}
	if secrets != nil {
		g, err := a.overTCP()
		if err != nil {
			return nil, err
		}
		list = append(list, door{"sds.listen", g, cutoff.New(secrets)})
	}
	return list, nil
}

// overTCP is SDS over loopback TCP with TLS, for Envoys configured with a
// host and port. The server shows the node's own certificate; who calls is
// told by the kernel: exactly one live process must hold the other end,
// before and after attestation.
func (a *agent) overTCP() (*grpc.Server, error) {
	matrix, err := callers.New(nil, callers.SDS, callers.ADS)
	if err != nil {
		return nil, err
	}
	unary, stream := matrix.Interceptors(callers.As(callers.Workload), a.refusedCall)
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			id, _ := a.link.Identity()
			if id == nil {
				return nil, fault.New(fault.Unavailable, "this node has no identity yet")
			}
			return id.TLS(), nil
		},
	}
	g := grpc.NewServer(append(doorOptions(), grpc.Creds(workload.NewTLSCredentials(a.attestor, config)), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	a.sds.Register(g)
	return g, matrix.CheckRegistered(g.GetServiceInfo())
}

// doorOptions bound what a local process may cost before it has said anything.
func doorOptions() []grpc.ServerOption {
	return append(sds.ServerOptions(), grpc.ConnectionTimeout(handshakeTimeout))
}

const handshakeTimeout = 10 * time.Second

// envoyMetrics passes on the statistics of every session's Envoy, each with
// its session as a label.
func (a *agent) envoyMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for session, socket := range a.sessions.Admins() {
		if err := envoy.NewAdmin(socket).Prometheus(r.Context(), r.URL.Query().Get("filter"), labelled(w, session)); err != nil {
			fmt.Fprintf(w, "# session %s: %v\n", session, err)
		}
	}
}
