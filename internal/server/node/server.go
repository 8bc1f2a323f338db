// Package node is the door for agents: it attests nodes, signs for
// identities that are theirs, pushes the trust and config streams, and
// collects what local subscribers acknowledged. It decides nothing but
// whether this node may.
package node

import (
	"context"
	"log/slog"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
	attestnode "github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/objects"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
)

// Protocol is the version this control plane speaks; it also accepts the one
// before, once there is one.
const (
	Protocol    = 1
	minProtocol = 1
)

// Features are the optional features this control plane offers.
var Features = []string{}

// Authority signs. It does not authorise: whoever calls has.
type Authority interface {
	// SignX509 returns one result per request, in order.
	SignX509(ctx context.Context, reqs []ca.X509Request) []ca.X509Result
	SignJWT(ctx context.Context, req ca.JWTRequest) (ca.JWTResult, error)
}

// Entries tells which registration entries a node has.
type Entries interface {
	// Entry returns the entry "<namespace>/<name>" as the node sees it, or
	// fault.NotFound when none of that name is parented to the node.
	Entry(node, name string) (*nodev1.Entry, error)
}

// Objects keeps values that the replicas of one identity share. It does not
// authorise: whoever calls has.
type Objects interface {
	Get(ctx context.Context, id spiffeid.ID, key string) (objects.Object, error)
	Put(ctx context.Context, id spiffeid.ID, key string, value []byte, ifRevision *int64) (int64, error)
	Delete(ctx context.Context, id spiffeid.ID, key string, ifRevision *int64) error
	List(ctx context.Context, id spiffeid.ID, prefix string) ([]objects.Object, error)
}

// SubjectCompiler makes a proxy's configuration.
type SubjectCompiler interface {
	// Compile returns all resources of a subject of a node that holds the
	// subject's entry. Errors have a kind and are shown to the agent.
	Compile(node string, subject *nodev1.Subject) ([]*distribute.Resource, error)
}

// Params is what a Server needs. Optional fields may be nil.
type Params struct {
	TrustDomain spiffeid.TrustDomain
	Authority   Authority
	Registry    *registry.Registry
	// Attestors by method name.
	Attestors map[string]attestnode.Attestor
	// Entries; nil reads the entries in the Engine's scope of the node.
	Entries Entries
	// Engine holds the trust resources in scopes "all" and "node/<name>", and
	// the config resources that this door compiles.
	Engine   *distribute.Engine
	Subjects SubjectCompiler
	Acks     *acks.Ledger
	// Objects of identities; nil refuses the calls about them.
	Objects Objects
	// Bundle is the trust domain's own, handed out at attestation.
	Bundle func() *nodev1.Bundle
	// Explain says which declared entries come near; optional.
	Explain func(ctx context.Context, node string, req *nodev1.ExplainRequest) ([]*nodev1.Candidate, error)
	// Superseded puts a certificate of the node, which says that a newer one
	// has taken its place, into the CRL; nil ignores it. fault.Denied: it is not
	// of that node, or nothing newer is there.
	Superseded func(ctx context.Context, node, serial string) error
	// Blocked says why nothing may be issued to a node, which is asked before
	// its proof is spent; optional.
	Blocked func(node string) error
	// Refused is told of every refusal that concerns what a node may, for the
	// audit trail; optional. It must not block.
	Refused func(ctx context.Context, r Refusal)
	// Peer says who calls; nil reads the verified certificate of the gRPC
	// connection.
	Peer       func(ctx context.Context) (Caller, error)
	Limits     Limits
	Clock      clock.Clock
	Log        *slog.Logger
	Registerer prometheus.Registerer
	// Version of this program, for Hello.
	Version string
}

// Refusal is one thing that was refused to a caller.
type Refusal struct {
	Node   string // empty for an attestation
	Peer   string // address
	Action string // e.g. "SignX509"
	Object string // what was asked for, e.g. a SPIFFE ID
	Err    error
}

// Server implements the services Attestation and Node.
type Server struct {
	nodev1.UnimplementedAttestationServer
	nodev1.UnimplementedNodeServer

	p       Params
	metrics *metrics

	attestRate  *limit.Buckets
	attestSlots *limit.Slots
	csrRate     *limit.Buckets
	callRate    *limit.Buckets
	objectRate  *limit.Buckets
	streams     *limit.Slots

	readers sync.WaitGroup // of streams; they end with their connections

	mu        sync.Mutex // guards all below
	connected map[string][]*presence
	configs   map[*configStream]struct{}
	sequence  uint64 // names streams
}

// New returns a Server; it starts nothing.
func New(p Params) *Server {
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if p.Peer == nil {
		p.Peer = peerOf(p.TrustDomain, p.Clock)
	}
	if p.Entries == nil {
		p.Entries = pushedEntries{p.Engine}
	}
	if p.Acks == nil {
		p.Acks = acks.New(acks.Params{Clock: p.Clock})
	}
	p.Limits = p.Limits.withDefaults()
	return &Server{
		p:           p,
		metrics:     newMetrics(p.Registerer),
		attestRate:  limit.NewBuckets(p.Limits.AttestationsPerIP, 0),
		attestSlots: limit.NewSlots(p.Limits.AttestationsAtOnce),
		csrRate:     limit.NewBuckets(p.Limits.CSRsPerNode, 0),
		callRate:    limit.NewBuckets(p.Limits.CallsPerNode, 0),
		objectRate:  limit.NewBuckets(p.Limits.ObjectBytesPerNode, 0),
		streams:     limit.NewSlots(p.Limits.StreamsPerNode),
		connected:   map[string][]*presence{},
		configs:     map[*configStream]struct{}{},
	}
}

// Register adds both services to a gRPC server made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	nodev1.RegisterAttestationServer(r, s)
	nodev1.RegisterNodeServer(r, s)
}

// Wait returns when every goroutine of this Server has ended. Call it after
// the gRPC server has stopped, which ends them.
func (s *Server) Wait() { s.readers.Wait() }
