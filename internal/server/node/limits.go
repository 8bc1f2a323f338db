package node

import (
	"time"

	"github.com/legation-io/legation/internal/limit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Limits bound what callers may use. The zero value is the defaults.
type Limits struct {
	// AttestationsPerIP counts attempts, good or bad, so that proofs cannot be
	// guessed. An IPv6 host counts by its /64. Default 2/s, 50 at once.
	AttestationsPerIP limit.Rate
	// AttestationsAtOnce from one address. Default 64.
	AttestationsAtOnce int
	// CSRsPerNode counts certificates asked for. Default 50/s, 500 at once.
	CSRsPerNode limit.Rate
	// CallsPerNode counts all other calls. Default 100/s, 500 at once.
	CallsPerNode limit.Rate
	// ObjectBytesPerNode counts what is written into the store for the programs
	// of a node. Default 512 KiB/s, 20 MiB at once.
	ObjectBytesPerNode limit.Rate
	// StreamsPerNode at once, all kinds together. Default 16.
	StreamsPerNode int
	// SubjectsPerStream a config stream may watch. Default 1024.
	SubjectsPerStream int
	// ItemsPerBatch of SignX509. Default 256.
	ItemsPerBatch int
	// MessageBytes a caller may send at once. Default 4 MiB.
	MessageBytes int
}

func (l Limits) withDefaults() Limits {
	rate := func(r *limit.Rate, perSecond float64, burst int) {
		if *r == (limit.Rate{}) {
			*r = limit.Rate{PerSecond: perSecond, Burst: burst}
		}
	}
	count := func(n *int, def int) {
		if *n <= 0 {
			*n = def
		}
	}
	rate(&l.AttestationsPerIP, 2, 50)
	count(&l.AttestationsAtOnce, 64)
	rate(&l.CSRsPerNode, 50, 500)
	rate(&l.CallsPerNode, 100, 500)
	rate(&l.ObjectBytesPerNode, 512<<10, 20<<20)
	count(&l.StreamsPerNode, 16)
	count(&l.SubjectsPerStream, 1024)
	count(&l.ItemsPerBatch, 256)
	count(&l.MessageBytes, 4<<20)
	return l
}

// HandshakeTimeout is how long a connection may take to become usable.
const HandshakeTimeout = 10 * time.Second

// ServerOptions are the transport limits of the agents' port: how long a
// handshake may take, how dead connections are found, how much one may ask at
// once. Credentials and interceptors are the assembly's.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ConnectionTimeout(HandshakeTimeout),
		grpc.WaitForHandlers(true), // Stop returns when they have; then Wait is sound
		grpc.MaxRecvMsgSize(s.p.Limits.MessageBytes),
		grpc.ReadBufferSize(4 << 10), // an agent says little: memory per node counts
		grpc.MaxConcurrentStreams(128),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}
