// Package declared puts the policies into force that were declared for this
// program with "legation apply": it asks the agent's socket which kind Policy
// binds the caller's identity (legation.workload.v1.Policies) and hands every
// answer to a policy.Engine, milliseconds after the declaration changed.
// Deciding is the engine's work; this package is apart from sdk/policy because
// it links gRPC.
package declared

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/policy"
)

// Source is where declared policies come from.
type Source struct {
	// Addr is the agent's socket, "unix:///path" or "tcp://ip:port"; empty
	// takes SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// SPIFFEID is the identity whose policies are meant, where the program
	// has several; empty takes its default one.
	SPIFFEID string
	// Logger gets each change of the connection. Nil is slog.Default().
	Logger *slog.Logger
}

const (
	maxMessage   = 64 << 20
	minDelay     = 50 * time.Millisecond
	firstCeiling = 250 * time.Millisecond
	lastCeiling  = 10 * time.Second
)

// FromLegation is Source.Run with an address alone.
func FromLegation(ctx context.Context, addr string, e *policy.Engine) error {
	return Source{Addr: addr}.Run(ctx, e)
}

// Run keeps the engine's policies those that are declared, until ctx ends, and
// then returns nil. It returns earlier only where trying again is no
// use: a wrong address, a request that the agent refuses as such, or a socket
// that does not know declared policies (codes.Unimplemented), as other
// implementations of the Workload API. While no agent answers, or it says that
// the program has no identity, the policies that came last stay in force;
// before the first came, everything is denied. An empty answer, when the last
// policy was deleted, denies everything. All policies of the engine are
// replaced: give one engine one source.
func (s Source) Run(ctx context.Context, e *policy.Engine) error {
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	if s.Addr == "" {
		s.Addr = os.Getenv(workloadapi.SocketEnv)
	}
	if s.Addr == "" {
		return fmt.Errorf("declared policies: no address: give one or set %s, e.g. unix:///run/legation/agent.sock", workloadapi.SocketEnv)
	}
	target, err := workloadapi.TargetFromAddress(s.Addr)
	if err != nil {
		return fmt.Errorf("declared policies: address %q: %w", s.Addr, err)
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel vouches for both ends
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minDelay, Multiplier: 1.6, Jitter: 0.5, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}))
	if err != nil {
		return fmt.Errorf("declared policies: %s: %w", s.Addr, err)
	}
	defer conn.Close()
	client := workloadv1.NewPoliciesClient(conn)
	ceiling := firstCeiling
	said := ""
	for {
		err := s.watch(ctx, client, e, func() { ceiling, said = firstCeiling, "" })
		if ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.Unimplemented, codes.InvalidArgument:
			return fmt.Errorf("declared policies: %s: %w", s.Addr, err)
		}
		if err != nil && err.Error() != said { // once, not at every try
			said = err.Error()
			s.Logger.Warn("declared policies: the agent does not answer, the last ones stay in force", "address", s.Addr, "error", err)
		}
		timer := time.NewTimer(minDelay + rand.N(ceiling))
		ceiling = min(2*ceiling, lastCeiling)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// watch reads one stream to its end.
func (s Source) watch(ctx context.Context, client workloadv1.PoliciesClient, e *policy.Engine, came func()) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	defer cancel()
	stream, err := client.Watch(ctx, &workloadv1.WatchPoliciesRequest{SpiffeId: s.SPIFFEID})
	if err != nil {
		return err
	}
	for {
		set, err := stream.Recv()
		if err != nil {
			return err
		}
		came()
		policies := make([]policy.Policy, len(set.GetPolicies()))
		for i, p := range set.GetPolicies() {
			if policies[i], err = convert(p); err != nil {
				return err
			}
		}
		// What does not load, the engine logs and counts; the one before stays.
		_ = e.Set(ctx, "legation", policies...)
	}
}

func convert(p *workloadv1.Policy) (policy.Policy, error) {
	if p.GetName() == "" || p.GetRegoVersion() > 1 {
		return policy.Policy{}, errors.New("the agent sent a policy without a name, or of a Rego version that is not known here")
	}
	return policy.Policy{Name: p.GetName(), Version: strconv.FormatUint(p.GetVersion(), 10), Modules: p.GetModules(),
		RegoV0: p.GetRegoVersion() == policy.RegoV0, Data: p.GetData(), Query: p.GetQuery()}, nil
}
