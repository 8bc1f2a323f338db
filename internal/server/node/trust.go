package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"google.golang.org/grpc"
)

// trustTypes are the types of the trust stream, in the order in which they
// are sent when several wait: what verifies comes before what is verified,
// and nothing waits behind entries but policies and heartbeats.
var trustTypes = []string{"bundle", "crl", "revocation", "entry", "policy", "heartbeat"}

func trustPriority(typ string) int {
	for i, t := range trustTypes {
		if t == typ {
			return i
		}
	}
	return len(trustTypes)
}

const maxTrustNames = 1 << 18

// ScopeAll holds the trust resources of every node; NodeScope those of one.
const ScopeAll distribute.Scope = "all"

// NodeScope holds the trust resources that one node alone sees.
func NodeScope(node string) distribute.Scope { return distribute.Scope("node/" + node) }

// SubscriberID names a node's trust stream in the engine's ledger; its config
// streams are "<that>/<subject>".
func SubscriberID(node string) string { return "node/" + node }

// open admits a stream, takes one of the node's slots and guards it.
func (s *Server) open(ctx context.Context) (caller Caller, guarded context.Context, done func(), err error) {
	caller, err = s.admit(ctx)
	if err != nil {
		return caller, ctx, func() {}, err
	}
	release, ok := s.streams.Acquire(caller.Node)
	if !ok {
		return caller, ctx, func() {}, limit.Error("streams of node "+caller.Node, 0)
	}
	guarded, stop := s.guard(ctx, caller)
	return caller, guarded, func() { stop(); release() }, nil
}

// ended maps why a stream stopped: the guard's reason before the symptom. A
// caller that was done is no error.
func ended(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && fault.Is(cause, fault.Denied) {
		return cause
	}
	return err
}

// Trust pushes what this node trusts and is entitled to.
func (s *Server) Trust(stream grpc.BidiStreamingServer[nodev1.TrustRequest, nodev1.TrustResponse]) error {
	caller, ctx, done, err := s.open(stream.Context())
	if err == nil {
		err = ended(ctx, s.trust(ctx, caller, stream))
	}
	done()
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "Trust", Err: err})
		return limit.GRPC(fmt.Errorf("trust stream: %w", err))
	}
	return nil
}

func (s *Server) trust(ctx context.Context, caller Caller, stream grpc.BidiStreamingServer[nodev1.TrustRequest, nodev1.TrustResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	requests := receive(ctx, &s.readers, cancel, stream.Recv)
	var open *nodev1.TrustOpen
	select {
	case req := <-requests:
		if open = req.GetOpen(); open == nil {
			return fault.New(fault.Invalid, "the first message must be an open")
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.checkHello(open.GetHello()); err != nil {
		return err
	}
	sub := s.p.Engine.Attach(distribute.SubscriberParams{
		ID: SubscriberID(caller.Node), Scopes: []distribute.Scope{ScopeAll, NodeScope(caller.Node)},
		OnePerResponse: true, Priority: trustPriority, MaxNames: maxTrustNames,
	})
	defer sub.Close()
	known := map[string]map[string]string{}
	for _, k := range open.GetKnown() {
		if known[k.GetType()] == nil {
			known[k.GetType()] = map[string]string{}
		}
		known[k.GetType()][k.GetName()] = k.GetVersion()
	}
	for _, typ := range trustTypes {
		if err := sub.Request(distribute.Request{Type: typ, Initial: known[typ]}); err != nil {
			return err
		}
	}
	defer s.present(caller, open.GetHello())()
	if err := stream.Send(&nodev1.TrustResponse{Message: &nodev1.TrustResponse_Hello{Hello: s.hello()}}); err != nil {
		return err
	}
	s.readers.Add(1)
	go func() { // answers; ends with ctx
		defer s.readers.Done()
		for {
			select {
			case <-ctx.Done():
				return
			case req := <-requests:
				if err := trustAck(sub, req.GetAck()); err != nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return s.pushTrust(ctx, sub, stream)
}

func (s *Server) pushTrust(ctx context.Context, sub *distribute.Subscriber, stream grpc.BidiStreamingServer[nodev1.TrustRequest, nodev1.TrustResponse]) error {
	synced := sub.Synced()
	for {
		res, err := sub.Next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		nonce := res.Nonce + "/" + res.Type
		sent := false
		for _, r := range res.Resources {
			sent = true
			err = stream.Send(&nodev1.TrustResponse{Message: &nodev1.TrustResponse_Resource{Resource: &nodev1.TrustResource{
				Nonce: nonce, Type: r.Type, Name: r.Name, Version: r.Version, Body: r.Body}}})
		}
		for _, name := range res.Removed {
			sent = true
			err = stream.Send(&nodev1.TrustResponse{Message: &nodev1.TrustResponse_Resource{Resource: &nodev1.TrustResource{
				Nonce: nonce, Type: res.Type, Name: name, Removed: true}}})
		}
		if err != nil {
			return err
		}
		if !sent { // a type without resources: nothing to answer
			if err := sub.Request(distribute.Request{Type: res.Type, Nonce: res.Nonce}); err != nil {
				return err
			}
		}
		select {
		case <-synced:
			synced = nil
			if err := stream.Send(&nodev1.TrustResponse{Message: &nodev1.TrustResponse_Synced{Synced: &nodev1.Synced{}}}); err != nil {
				return err
			}
		default:
		}
	}
}

func trustAck(sub *distribute.Subscriber, ack *nodev1.Ack) error {
	if ack == nil {
		return fault.New(fault.Invalid, "after the open only acknowledgements are expected")
	}
	nonce, typ, ok := strings.Cut(ack.GetNonce(), "/")
	if !ok || trustPriority(typ) == len(trustTypes) {
		return nil // stale or foreign: ignored, as xDS does
	}
	return sub.Request(distribute.Request{Type: typ, Nonce: nonce, Error: shorten(ack.GetError(), 1024)})
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// receive hands a stream's messages to a channel; the stream's end cancels
// with its error. The goroutine ends with the stream, which the gRPC server
// ends when the handler returns.
func receive[T any](ctx context.Context, owner interface {
	Add(int)
	Done()
}, cancel context.CancelCauseFunc, recv func() (T, error)) <-chan T {
	messages := make(chan T)
	owner.Add(1)
	go func() {
		defer owner.Done()
		for {
			m, err := recv()
			if err != nil {
				cancel(err)
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return messages
}
