package workloadapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/holder"
)

// watchRevocations keeps the deny set current where the socket offers one. A
// socket that does not is asked again when the X.509 stream came back: another
// agent may then answer there.
func (s *Source) watchRevocations(ctx context.Context, conn grpc.ClientConnInterface) {
	client := workloadv1.NewRevocationsClient(conn)
	wait := holder.Retry{Backoff: s.c.Backoff}
	for ctx.Err() == nil {
		err := s.readRevocations(ctx, client, &wait)
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unimplemented {
			s.c.Logger.Debug("the Workload API does not tell what was revoked beyond CRLs", "workload_api", s.c.Addr, "error", err)
			s.holder.NotOffered()
			select {
			case <-ctx.Done():
				return
			case <-s.again:
			}
		}
		_ = wait.Wait(ctx)
	}
}

func (s *Source) readRevocations(ctx context.Context, client workloadv1.RevocationsClient, wait *holder.Retry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &workloadv1.WatchRevocationsRequest{})
	if err != nil {
		return err
	}
	for {
		set, err := stream.Recv()
		if err != nil {
			return err
		}
		wait.Reset()
		all := make([]holder.Revocation, len(set.GetRevocations()))
		for n, r := range set.GetRevocations() {
			all[n] = holder.Revocation{SPIFFEID: r.GetSpiffeId(), Serials: r.GetSerials(), Reason: r.GetReason(), At: time.Unix(0, r.GetRevokedAtUnixNano())}
		}
		s.holder.Denied(all)
		signal(s.hurry)
	}
}
