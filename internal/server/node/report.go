package node

import (
	"context"
	"fmt"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"google.golang.org/grpc"
)

// Report takes what local subscribers acknowledged, refused and serve. A new
// stream of a node replaces what the one before said: its first messages tell
// everything again.
func (s *Server) Report(stream grpc.BidiStreamingServer[nodev1.ReportRequest, nodev1.ReportResponse]) error {
	caller, ctx, done, err := s.open(stream.Context())
	if err == nil {
		err = ended(ctx, s.report(ctx, caller, stream))
	}
	done()
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "Report", Err: err})
		return limit.GRPC(fmt.Errorf("report stream: %w", err))
	}
	return nil
}

func (s *Server) report(ctx context.Context, caller Caller, stream grpc.BidiStreamingServer[nodev1.ReportRequest, nodev1.ReportResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	requests := receive(ctx, &s.readers, cancel, stream.Recv)
	var session *acks.Session
	for {
		select {
		case <-ctx.Done():
			if session != nil {
				session.Close()
			}
			return context.Cause(ctx)
		case req := <-requests:
			if session == nil {
				if err := s.checkHello(req.GetHello()); err != nil {
					return err
				}
				session = s.p.Acks.Open(caller.Node)
				defer session.Close()
				if err := stream.Send(&nodev1.ReportResponse{Hello: s.hello()}); err != nil {
					return err
				}
			} else if req.GetHello() != nil {
				return fault.New(fault.Invalid, "only the first message carries a hello")
			}
			if err := session.Apply(req); err != nil {
				return err
			}
			if err := s.superseded(ctx, caller, req.GetSupersededSerials()); err != nil {
				return err
			}
		}
	}
}

// superseded revokes what was replaced. A refused serial is audited and
// leaves the others alone; what fails otherwise ends the stream, and the agent
// tells it again.
func (s *Server) superseded(ctx context.Context, caller Caller, serials []string) error {
	if s.p.Superseded == nil {
		return nil
	}
	if len(serials) > s.p.Limits.ItemsPerBatch {
		return fault.New(fault.Invalid, "%d superseded serials in one report: at most %d", len(serials), s.p.Limits.ItemsPerBatch)
	}
	for _, serial := range serials {
		err := s.p.Superseded(ctx, caller.Node, serial)
		switch {
		case err == nil:
		case fault.Is(err, fault.Denied), fault.Is(err, fault.NotFound), fault.Is(err, fault.Invalid):
			s.refused(ctx, Refusal{Node: caller.Node, Action: "Supersede", Object: serial, Err: err})
		default:
			return err
		}
	}
	return nil
}
