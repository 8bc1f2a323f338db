package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// doors are the agent's two gRPC servers: for everybody on this machine, and
// for its owner.
type doors struct{ public, owner *grpc.Server }

// publicMatrix is who may call what on the public socket.
func publicMatrix() (*callers.Matrix, error) {
	return callers.New([]protoreflect.FileDescriptor{localv1.File_api_local_v1_local_proto}, callers.WorkloadAPI, callers.SDS, callers.ADS, callers.Health)
}

func (a *agent) refusedCall(_ context.Context, method string, i callers.Identity, err error) {
	a.log.Warn("call refused", "audit", true, "method", method, "caller", i.String(), "error", err)
}

func (a *agent) doors() (*doors, error) {
	matrix, err := publicMatrix()
	if err != nil {
		return nil, err
	}
	d := &doors{}
	unary, stream := matrix.Interceptors(callers.As(callers.Workload), a.refusedCall)
	d.public = grpc.NewServer(append(sds.ServerOptions(), grpc.Creds(workload.NewCredentials(a.attestor)), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	a.api.Register(d.public)
	a.sds.Register(d.public)
	localv1.RegisterSessionsServer(d.public, a.sessions)

	unary, stream = matrix.Interceptors(callers.As(callers.Owner), a.refusedCall)
	d.owner = grpc.NewServer(grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))
	localv1.RegisterAgentAdminServer(d.owner, &agentAdmin{agent: a})
	for _, g := range []*grpc.Server{d.public, d.owner} {
		if err := matrix.CheckRegistered(g.GetServiceInfo()); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// serveTCP is SDS over loopback TCP with TLS, for Envoys configured with a
// host and port. The server shows the node's own certificate; who calls is
// told by the kernel: exactly one live process must hold the other end,
// before and after attestation.
func (a *agent) serveTCP(ctx context.Context) error {
	l, err := net.Listen("tcp", a.cfg.SDS.Listen)
	if err != nil {
		return fault.New(fault.Invalid, "listen: %w", err)
	}
	defer l.Close()
	matrix, err := callers.New(nil, callers.SDS, callers.ADS)
	if err != nil {
		return err
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
	g := grpc.NewServer(append(sds.ServerOptions(), grpc.Creds(workload.NewTLSCredentials(a.attestor, config)), grpc.ChainUnaryInterceptor(unary), grpc.ChainStreamInterceptor(stream))...)
	a.sds.Register(g)
	stopped := make(chan struct{})
	go func() { // ends with ctx
		defer close(stopped)
		<-ctx.Done()
		g.Stop()
	}()
	a.log.Info("SDS over TCP serves", "listen", l.Addr().String())
	err = g.Serve(l)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return err
}

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
