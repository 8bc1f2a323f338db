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
	"strconv"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/holder"
	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// Source is where declared policies come from.
type Source struct {
	// Addr is the agent's socket, "unix:///path" or "tcp://ip:port"; empty
	// takes SPIFFE_ENDPOINT_SOCKET.
	Addr string
	// SPIFFEID is the identity whose policies are meant, where the program
	// has several; zero takes its default one.
	SPIFFEID spiffeid.ID
	// Logger gets each change of the connection. Nil is slog.Default().
	Logger *slog.Logger
}

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
	conn, err := workloadapi.Dial(s.Addr)
	if err != nil {
		return fmt.Errorf("declared policies: %w", err)
	}
	defer conn.Close()
	client := workloadv1.NewPoliciesClient(conn)
	var retry holder.Retry
	said := ""
	for {
		err := s.watch(ctx, client, e, func() { retry.Reset(); said = "" })
		if ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.Unimplemented, codes.InvalidArgument:
			return fmt.Errorf("declared policies: %s: %w", conn.Target(), err)
		}
		if err != nil && err.Error() != said { // once, not at every try
			said = err.Error()
			s.Logger.Warn("declared policies: the agent does not answer, the last ones stay in force", "address", conn.Target(), "error", err)
		}
		if retry.Wait(ctx) != nil {
			return nil
		}
	}
}

// watch reads one stream to its end.
func (s Source) watch(ctx context.Context, client workloadv1.PoliciesClient, e *policy.Engine, came func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &workloadv1.WatchPoliciesRequest{SpiffeId: s.SPIFFEID.String()})
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
