package upstream

import (
	"context"
	"maps"
	"sort"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/protobuf/proto"
)

// The types of the trust stream.
const (
	typeBundle     = "bundle"
	typeCRL        = "crl"
	typeRevocation = "revocation"
	typeEntry      = "entry"
	typePolicy     = "policy"
	typeHeartbeat  = "heartbeat"
)

// trustOrder is the order in which a cache is read: what verifies first.
var trustOrder = map[string]int{typeBundle: 1, typeCRL: 2, typeRevocation: 3, typeEntry: 4, typePolicy: 5, typeHeartbeat: 6}

type trustKey struct{ typ, name string }

// trustState is every resource the view is made of, as it came.
type trustState struct {
	held map[trustKey]*nodev1.TrustResource
}

func newTrustState() *trustState { return &trustState{held: map[trustKey]*nodev1.TrustResource{}} }

// batch is a change to the view in the making. Maps are copied when first
// written, once per batch.
type batch struct {
	link    *Link
	view    View
	copied  map[string]bool
	changed bool
}

// begin starts a batch; the caller holds l.mu until publish.
func (l *Link) begin() *batch {
	return &batch{link: l, view: *l.view.Get(), copied: map[string]bool{}}
}

// publish makes the batch the view.
func (l *Link) publish(b *batch) {
	if !b.changed {
		return
	}
	l.view.Store(&b.view)
	raise(l.unsave)
}

func writable[V any](b *batch, typ string, m *map[string]V) map[string]V {
	if !b.copied[typ] {
		b.copied[typ] = true
		if *m = maps.Clone(*m); *m == nil {
			*m = map[string]V{}
		}
	}
	return *m
}

// apply judges one resource and, if it is good, makes it part of the batch.
// An error leaves what was.
func (b *batch) apply(r *nodev1.TrustResource) error {
	l := b.link
	var set, remove func()
	var err error
	switch r.GetType() {
	case typeEntry:
		m := new(nodev1.Entry)
		set = func() { writable(b, typeEntry, &b.view.Entries)[r.GetName()] = m }
		remove = func() { delete(writable(b, typeEntry, &b.view.Entries), r.GetName()) }
		err = l.decode(r, m, func() error { return l.checkEntry(r.GetName(), m) })
	case typePolicy:
		m := new(nodev1.Policy)
		set = func() { writable(b, typePolicy, &b.view.Policies)[r.GetName()] = m }
		remove = func() { delete(writable(b, typePolicy, &b.view.Policies), r.GetName()) }
		err = l.decode(r, m, func() error { return checkPolicy(r.GetName(), m) })
	case typeBundle:
		m := new(nodev1.Bundle)
		set = func() { writable(b, typeBundle, &b.view.Bundles)[r.GetName()] = m }
		remove = func() { delete(writable(b, typeBundle, &b.view.Bundles), r.GetName()) }
		err = l.decode(r, m, func() error { return checkBundle(r.GetName(), m, b.view.Bundles[r.GetName()]) })
		if r.GetRemoved() && r.GetName() == l.p.TrustDomain.Name() {
			err = fault.New(fault.Invalid, "the bundle of this trust domain cannot be removed")
		}
	case typeCRL:
		m := new(nodev1.CRL)
		set = func() { writable(b, typeCRL, &b.view.CRLs)[r.GetName()] = m }
		err = l.decode(r, m, func() error { return checkCRL(r.GetName(), m, b.view.CRLs[r.GetName()]) })
		if r.GetRemoved() && b.view.CRLs[r.GetName()] != nil {
			err = fault.New(fault.Invalid, "the CRL of authority %s cannot be removed: its number only grows", r.GetName())
		}
		remove = func() {}
	case typeRevocation:
		m := new(nodev1.Revocation)
		set = func() { writable(b, typeRevocation, &b.view.Revocations)[r.GetName()] = m }
		remove = func() { delete(writable(b, typeRevocation, &b.view.Revocations), r.GetName()) }
		err = l.decode(r, m, func() error { return checkRevocation(r.GetName(), m) })
	case typeHeartbeat:
		m := new(nodev1.Heartbeat)
		set = func() { writable(b, typeHeartbeat, &b.view.Heartbeats)[r.GetName()] = m }
		remove = func() { delete(writable(b, typeHeartbeat, &b.view.Heartbeats), r.GetName()) }
		err = l.decode(r, m, func() error { return l.checkHeartbeat(r.GetName(), m, &b.view) })
		if held := b.view.Heartbeats[r.GetName()]; err == nil && !r.GetRemoved() && m.GetUnixSeconds() < held.GetUnixSeconds() {
			return nil // of a replica whose clock is behind the last one's: the later word stays
		}
	default:
		return nil // of a newer control plane: nothing we could do with it
	}
	if err != nil {
		l.metrics.refused.WithLabelValues(r.GetType()).Inc()
		return err
	}
	key := trustKey{r.GetType(), r.GetName()}
	if r.GetRemoved() {
		if _, ok := l.trust.held[key]; ok {
			delete(l.trust.held, key)
			remove()
			b.changed = true
		}
	} else {
		set()
		l.trust.held[key] = &nodev1.TrustResource{Type: r.GetType(), Name: r.GetName(), Version: r.GetVersion(), Body: r.GetBody()}
		b.changed = true
	}
	l.metrics.applied.WithLabelValues(r.GetType()).Inc()
	return nil
}

// decode fills m from the resource's body and checks it, unless the resource
// is a removal.
func (l *Link) decode(r *nodev1.TrustResource, m proto.Message, check func() error) error {
	if r.GetRemoved() {
		return nil
	}
	if err := proto.Unmarshal(r.GetBody(), m); err != nil {
		return fault.New(fault.Invalid, "%s %.300q does not parse: %w", r.GetType(), r.GetName(), err)
	}
	if err := check(); err != nil {
		return fault.New(fault.Invalid, "%s %.300q: %w", r.GetType(), r.GetName(), err)
	}
	return nil
}

// known is what the agent holds, for the open of a stream.
func (l *Link) known() []*nodev1.ResourceVersion {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*nodev1.ResourceVersion, 0, len(l.trust.held))
	for k, r := range l.trust.held {
		out = append(out, &nodev1.ResourceVersion{Type: k.typ, Name: k.name, Version: r.GetVersion()})
	}
	return out
}

// sorted is all resources held, in the order in which they can be applied.
func (t *trustState) sorted() []*nodev1.TrustResource {
	out := make([]*nodev1.TrustResource, 0, len(t.held))
	for _, r := range t.held {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool {
		if a, b := trustOrder[out[i].GetType()], trustOrder[out[j].GetType()]; a != b {
			return a < b
		}
		return out[i].GetName() < out[j].GetName()
	})
	return out
}

// inbox bounds responses that wait to be applied; one batch takes them all.
const inbox = 1024

// followTrust applies the trust stream until it ends.
func (l *Link) followTrust(ctx context.Context, s *session, up func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := s.client.Trust(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Open{Open: &nodev1.TrustOpen{Hello: l.hello(), Known: l.known()}}}); err != nil {
		_, err = stream.Recv()
		return err
	}
	responses := pump(cancel, inbox, stream.Recv)
	defer drained(responses, cancel)
	first, err := within(ctx, responses, helloTimeout)
	if err != nil {
		return err
	}
	if err := l.checkHello(first.GetHello()); err != nil {
		return err
	}
	up()
	for {
		var res *nodev1.TrustResponse
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r, ok := <-responses:
			if !ok {
				return context.Cause(ctx)
			}
			res = r
		}
		for _, ack := range l.applyAll(res, responses) {
			if err := stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Ack{Ack: ack}}); err != nil {
				return broken(ctx, responses)
			}
		}
	}
}

// applyAll applies a response and all that already wait behind it as one new
// view, and returns the answers.
func (l *Link) applyAll(res *nodev1.TrustResponse, more <-chan *nodev1.TrustResponse) []*nodev1.Ack {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.begin()
	var acks []*nodev1.Ack
	for range inbox {
		switch m := res.GetMessage().(type) {
		case *nodev1.TrustResponse_Resource:
			ack := &nodev1.Ack{Nonce: m.Resource.GetNonce()}
			if err := b.apply(m.Resource); err != nil {
				ack.Error = err.Error()
				l.p.Log.Error("a resource of the control plane is refused; the last good one stays", "type", m.Resource.GetType(), "name", m.Resource.GetName(), "reason", err)
			}
			acks = append(acks, ack)
		case *nodev1.TrustResponse_Synced:
			b.changed = b.changed || !b.view.Synced
			b.view.Synced = true
		}
		select {
		case next, ok := <-more:
			if !ok {
				l.publish(b)
				return acks
			}
			res = next
			continue
		default:
		}
		break
	}
	l.publish(b)
	return acks
}

// pump hands a stream's messages to a channel that is closed at its end;
// cancel gets the error. The goroutine ends when the stream's context does.
func pump[T any](cancel context.CancelCauseFunc, size int, recv func() (T, error)) <-chan T {
	out := make(chan T, size)
	go func() {
		defer close(out)
		for {
			m, err := recv()
			if err != nil {
				cancel(err)
				return
			}
			out <- m // drained reads until the close
		}
	}()
	return out
}

// broken is why a stream to which nothing can be sent has ended: the pump
// learns it.
func broken[T any](ctx context.Context, messages <-chan T) error {
	for range messages {
	}
	return context.Cause(ctx)
}

// drained ends a stream and waits until its pump is gone.
func drained[T any](messages <-chan T, cancel context.CancelCauseFunc) {
	cancel(nil)
	for range messages {
	}
}

// within is the first message of a stream, if it comes in time.
func within[T any](ctx context.Context, messages <-chan T, d time.Duration) (T, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	var zero T
	select {
	case m, ok := <-messages:
		if !ok {
			return zero, context.Cause(ctx)
		}
		return m, nil
	case <-timer.C:
		return zero, fault.New(fault.Unavailable, "the control plane did not answer within %s", d)
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	}
}
