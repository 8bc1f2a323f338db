// Package acmesds hands certificates to a gateway by SDS (Envoy's secret
// discovery service, v3): an HTTPS gateway beside the program, such as Envoy,
// serves what an acmecert.Manager keeps, and a renewed certificate from the
// next handshake on, without a file, a restart or a dropped connection. Which
// certificates there are is acmecert's question.
//
// The secret of a domain has the domain's name, e.g. "model.example.org" or
// "*.example.org": a tls_certificate with chain, key and, when there is one,
// the OCSP response. The socket is a Unix socket of mode 0600 and the only
// door: whoever is another user (and not root) cannot open it. Both protocols
// are spoken, state of the world and incremental (an api_config_source of
// api_type GRPC and DELTA_GRPC).
//
//	legation_acme_sds_responses_total{result="sent|acknowledged|refused"}
//	legation_acme_sds_streams
package acmesds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// Source has the certificates by domain, and says when there are others;
// *acmecert.Manager is one.
type Source interface {
	// Certificates never blocks. The map is never changed; the channel is
	// closed when Certificates would answer something else.
	Certificates() (map[string]*tls.Certificate, <-chan struct{})
}

// Config says what is served and where.
type Config struct {
	// Source of the certificates. Required.
	Source Source
	// Socket is the path of the Unix socket, e.g. "/run/model/sds.sock". Its
	// folder must exist. A socket that is left there and that nobody serves is
	// replaced; anything else is refused. Required.
	Socket string
	// Streams that may be open at once, one for each secret of each gateway;
	// 0 means 1,024.
	Streams int
	// Logger is slog.Default() when nil.
	Logger *slog.Logger
	// Registerer takes the metrics; may be nil.
	Registerer prometheus.Registerer
}

// Server serves SDS; Run does its work.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	config    Config
	log       *slog.Logger
	responses *prometheus.CounterVec
	streams   prometheus.Gauge
	slots     chan struct{}
	readers   sync.WaitGroup
}

// New refuses a Config that lacks something. It starts nothing.
func New(c Config) (*Server, error) {
	if c.Source == nil || c.Socket == "" {
		return nil, errors.New("acmesds: Source and Socket are required")
	}
	if c.Streams <= 0 {
		c.Streams = 1024
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	s := &Server{
		config: c, log: c.Logger, slots: make(chan struct{}, c.Streams),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "legation_acme_sds_responses_total", Help: "Secrets sent to gateways, acknowledged and refused by them."}, []string{"result"}),
		streams:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "legation_acme_sds_streams", Help: "SDS streams that are open."}),
	}
	if c.Registerer != nil {
		if err := errors.Join(c.Registerer.Register(s.responses), c.Registerer.Register(s.streams)); err != nil {
			return nil, fmt.Errorf("acmesds: %w", err)
		}
	}
	return s, nil
}

const (
	maxRequest = 64 << 10 // bytes
	maxNames   = 256      // of one stream
	handshake  = 10 * time.Second
)

// Run serves the socket until ctx ends, then ends every stream, removes the
// socket and returns nil.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.config.Socket)
	if err != nil {
		return fmt.Errorf("acmesds: %w", err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true), grpc.MaxRecvMsgSize(maxRequest), grpc.ConnectionTimeout(handshake), grpc.ReadBufferSize(4<<10))
	secretv3.RegisterSecretDiscoveryServiceServer(server, s)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err = <-ended:
		err = fmt.Errorf("acmesds: %s: %w", s.config.Socket, err)
	case <-ctx.Done():
		err = nil
	}
	// First, while nobody can take its place: the path of a socket that is served
	// no more may be another process's a moment later.
	os.Remove(s.config.Socket)
	server.Stop()
	s.readers.Wait()
	return err
}

// listen makes the socket in a folder that nobody else enters, and moves it to
// its place when its mode is right.
func listen(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket: remove it or name another path", path)
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("%s is served by another process already", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("is %s served by another process? %w", path, err)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".sds") // 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	hidden := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(hidden, 0o600); err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
