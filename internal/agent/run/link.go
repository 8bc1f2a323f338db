package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Back-off between attempts to come back to an agent that went away.
const (
	firstResume = 50 * time.Millisecond
	lastResume  = 2 * time.Second
	// resumeTimeout bounds one attempt: attestation, and the hold of a
	// program that no entry matches any more.
	resumeTimeout = 15 * time.Second
)

// open asks the agent for a session and waits for the child's identity. The
// connection lives until leave is called, or ctx ends.
func (s *session) open(ctx, startCtx context.Context) (err error) {
	conn, err := grpc.NewClient("unix://"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if err != nil {
			leave()
		}
	}()
	stream, err := localv1.NewSessionsClient(conn).Open(ctx)
	if status.Code(err) == codes.Unavailable {
		return fault.New(fault.Unavailable, "no agent serves %s\ntry: start it (legation-agent serve), or name its socket with --socket or LEGATION_SOCKET", s.Socket)
	}
	if err != nil {
		return fmt.Errorf("open a session at %s: %w", s.Socket, err)
	}
	start := &localv1.SessionStart{
		ChildPid: int32(s.child.cmd.Process.Pid), ExecFd: fdExec, ExecPath: s.child.path,
		Mode: s.Mode, Inbound: s.Inbound, Outbound: s.Outbound, SpiffeId: s.SPIFFEID, EnvoyUid: s.envoyUID(),
		NoIpv6: noIPv6(),
	}
	if s.attested != nil {
		start.Resume, start.SpiffeId, start.EnvoyPid = s.attested.Session, s.attested.SpiffeId, int32(s.proxy.PID())
	}
	err = stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("open a session at %s: %w", s.Socket, err)
	}
	type answer struct {
		r   *localv1.SessionResponse
		err error
	}
	got := make(chan answer, 1)
	go func() { // ends with the stream, whose context this function's caller ends
		r, err := stream.Recv()
		got <- answer{r, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return a.err
		}
		attested := a.r.GetAttested()
		if attested == nil {
			return fault.New(fault.Internal, "the agent at %s answered %T before it attested the program; do the versions match?", s.Socket, a.r.Message)
		}
		s.stream, s.attested, s.leave = stream, attested, leave
		return nil
	case <-startCtx.Done():
		if err := context.Cause(startCtx); !errors.Is(err, errLate) {
			return err
		}
		return fault.New(fault.Unavailable, "no identity within %s: the agent at %s has neither attested the program nor refused it\nsee: legation status, and the agent's log", s.ReadyTimeout, s.Socket)
	}
}

// converse keeps the session. Before the program runs, losing the agent ends
// it; afterwards the program and its proxy go on with what they hold, and the
// session is resumed once an agent is there again.
func (s *session) converse(ctx context.Context) error {
	for {
		err := s.talk(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !s.running.Load() {
			return err
		}
		s.Log.Warn("the agent is away; the program and its proxy go on with what they have", "error", err)
		s.leave()
		if err := s.resume(ctx); err != nil {
			return err
		}
		s.Log.Info("session resumed", "session", s.attested.Session, "spiffe_id", s.attested.SpiffeId)
	}
}

// resume opens the session again, for as long as ctx lasts. It fails only
// with ctx: a program that has no identity now may have one later.
func (s *session) resume(ctx context.Context) error {
	said := ""
	for wait := firstResume; ; wait = min(2*wait, lastResume) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		limit, stop := context.WithTimeoutCause(ctx, resumeTimeout, fault.New(fault.Unavailable, "the agent at %s did not answer within %s", s.Socket, resumeTimeout))
		err := s.open(ctx, limit)
		stop()
		if err == nil {
			if err = s.reintroduce(); err == nil {
				return nil
			}
			s.leave()
		}
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			s.Log.Warn("the session is not resumed yet", "error", said)
		}
	}
}

// reintroduce tells a new agent what runs. Older messages were for the last
// agent; one of an Envoy that starts right now is queued behind.
func (s *session) reintroduce() error {
	for len(s.requests) > 0 {
		<-s.requests
	}
	if pid := s.proxy.PID(); pid != 0 {
		if err := s.stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Envoy{Envoy: &localv1.EnvoyStarted{Pid: int32(pid)}}}); err != nil {
			return err
		}
	}
	return s.stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Program{Program: &localv1.ProgramStarted{}}})
}

// talk exchanges messages on one stream until it ends.
func (s *session) talk(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.write(ctx) })
	group.Go(func() error { return s.read(ctx) })
	return group.Wait()
}

func (s *session) write(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil // the reader has the reason
		case r := <-s.requests:
			if err := s.stream.Send(r); err != nil {
				return nil
			}
		}
	}
}

// read does what the agent says until the stream ends.
func (s *session) read(ctx context.Context) error {
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return fault.New(fault.Unavailable, "the agent ended the session: %s", status.Convert(err).Message())
		}
		switch m := r.Message.(type) {
		case *localv1.SessionResponse_Ready:
			select {
			case <-s.ready:
			default:
				close(s.ready)
			}
		case *localv1.SessionResponse_Warning:
			s.warning.Store(&m.Warning)
			s.Log.Warn(m.Warning)
		case *localv1.SessionResponse_Close:
			s.closeSockets(ctx, m.Close)
		}
	}
}

// noIPv6 reports whether ::1 cannot be bound in this network namespace.
func noIPv6() bool {
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err != nil || strings.TrimSpace(string(raw)) != "0"
}
