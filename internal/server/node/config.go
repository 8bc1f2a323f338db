package node

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// envelopeType is the one type of config resources in the engine, so that a
// change to a subject stays whole; a name is "<type URL> <name>".
const envelopeType = "envelope"

// configStream is one open config stream. Its handler goroutine owns all
// fields but recompile and stop.
type configStream struct {
	server *Server
	caller Caller
	stream grpc.BidiStreamingServer[nodev1.ConfigRequest, nodev1.ConfigResponse]

	subjects map[string]*subject // by subject id
	watches  map[string]*subject // by sequence, for acknowledgements
	bodies   bodies              // which hashes the agent has
	pushed   chan push           // from the subjects' pumps
	pumps    sync.WaitGroup

	mu        sync.Mutex // guards affected
	affected  []func(node string, s *nodev1.Subject) bool
	recompile chan struct{} // one token: affected is not empty
}

// subject is one watched proxy.
type subject struct {
	seq     string
	scope   distribute.Scope
	subject *nodev1.Subject
	sub     *distribute.Subscriber
	stop    context.CancelFunc // ends its pump
	refused string             // message of the refusal the agent was last told
}

type push struct {
	subject  *subject
	response *distribute.Response
}

// Recompile makes every config stream compile again the subjects for which
// affected returns true (nil: all). It returns at once; only resources that
// came out different travel.
func (s *Server) Recompile(affected func(node string, subject *nodev1.Subject) bool) {
	s.mu.Lock()
	streams := make([]*configStream, 0, len(s.configs))
	for c := range s.configs {
		streams = append(streams, c)
	}
	s.mu.Unlock()
	for _, c := range streams {
		c.mu.Lock()
		switch {
		case affected == nil || len(c.affected) >= 64 || len(c.affected) == 1 && c.affected[0] == nil:
			c.affected = append(c.affected[:0], nil) // all
		default:
			c.affected = append(c.affected, affected)
		}
		c.mu.Unlock()
		select {
		case c.recompile <- struct{}{}:
		default:
		}
	}
}

// Config pushes proxies' configuration.
func (s *Server) Config(stream grpc.BidiStreamingServer[nodev1.ConfigRequest, nodev1.ConfigResponse]) error {
	caller, ctx, done, err := s.open(stream.Context())
	if err == nil {
		err = ended(ctx, s.config(ctx, caller, stream))
	}
	done()
	if err != nil {
		s.refused(ctx, Refusal{Node: caller.Node, Action: "Config", Err: err})
		return limit.GRPC(fmt.Errorf("config stream: %w", err))
	}
	return nil
}

func (s *Server) config(ctx context.Context, caller Caller, stream grpc.BidiStreamingServer[nodev1.ConfigRequest, nodev1.ConfigResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &configStream{
		server: s, caller: caller, stream: stream,
		subjects: map[string]*subject{}, watches: map[string]*subject{}, bodies: newBodies(),
		pushed: make(chan push), recompile: make(chan struct{}, 1),
	}
	defer c.close(cancel)
	requests := receive(ctx, &s.readers, cancel, stream.Recv)
	select {
	case req := <-requests:
		if err := s.checkHello(req.GetHello()); err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	s.configs[c] = struct{}{}
	s.mu.Unlock()
	if err := stream.Send(&nodev1.ConfigResponse{Message: &nodev1.ConfigResponse_Hello{Hello: s.hello()}}); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case req := <-requests:
			err = c.handle(ctx, req)
		case p := <-c.pushed:
			err = c.send(p)
		case <-c.recompile:
			err = c.compileAffected(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (c *configStream) close(cancel context.CancelCauseFunc) {
	s := c.server
	s.mu.Lock()
	delete(s.configs, c)
	s.mu.Unlock()
	cancel(nil)
	c.pumps.Wait()
	for _, sj := range c.subjects {
		sj.end(s.p.Engine)
	}
}

func (sj *subject) end(e *distribute.Engine) {
	if sj.stop != nil {
		sj.stop()
	}
	if sj.sub != nil {
		sj.sub.Close()
	}
	e.Drop(sj.scope)
}

func (c *configStream) handle(ctx context.Context, req *nodev1.ConfigRequest) error {
	switch m := req.GetMessage().(type) {
	case *nodev1.ConfigRequest_Watch:
		return c.watch(ctx, m.Watch)
	case *nodev1.ConfigRequest_Unwatch:
		return c.unwatch(m.Unwatch)
	case *nodev1.ConfigRequest_Ack:
		return c.ack(m.Ack)
	}
	return fault.New(fault.Invalid, "a config stream carries watch, unwatch and ack after its hello")
}

func (c *configStream) watch(ctx context.Context, want *nodev1.Subject) error {
	id := want.GetId()
	if err := checkInstance(id); err != nil || id == "" {
		return fault.New(fault.Invalid, "subject id %.64q: 1 to 256 bytes of printable ASCII are needed", id)
	}
	if err := c.pace(ctx); err != nil {
		return err
	}
	held := want.GetHeld()
	want.Held = nil
	sj, ok := c.subjects[id]
	if ok {
		if proto.Equal(sj.subject, want) {
			return nil
		}
		sj.subject = want
		return c.compile(ctx, sj)
	}
	if len(c.subjects) >= c.server.p.Limits.SubjectsPerStream {
		return c.refuse(id, limit.Error(fmt.Sprintf("subjects of node %s", c.caller.Node), 0))
	}
	c.server.mu.Lock()
	c.server.sequence++
	seq := strconv.FormatUint(c.server.sequence, 10)
	c.server.mu.Unlock()
	// The sequence keeps apart two streams of one node, as when a link is replaced.
	sj = &subject{seq: seq, subject: want, scope: distribute.Scope("subject/" + c.caller.Node + "/" + id + "#" + seq)}
	c.subjects[id], c.watches[seq] = sj, sj
	initial := make(map[string]string, len(held))
	for _, h := range held {
		name := h.GetType() + " " + h.GetName()
		initial[name] = h.GetVersion()
		c.bodies.set(id, name, h.GetVersion())
	}
	if err := c.compile(ctx, sj); err != nil {
		return err
	}
	sj.sub = c.server.p.Engine.Attach(distribute.SubscriberParams{
		ID: SubscriberID(c.caller.Node) + "/" + id, Scopes: []distribute.Scope{sj.scope}, Window: 4,
	})
	if err := sj.sub.Request(distribute.Request{Type: envelopeType, Initial: initial}); err != nil {
		return err
	}
	pumpCtx, stop := context.WithCancel(ctx)
	sj.stop = stop
	c.pumps.Go(func() {
		for {
			res, err := sj.sub.Next(pumpCtx)
			if err != nil {
				return
			}
			select {
			case c.pushed <- push{sj, res}:
			case <-pumpCtx.Done():
				return
			}
		}
	})
	return nil
}

// pace makes a node that watches more often than it may call wait: each
// watch costs a compilation.
func (c *configStream) pace(ctx context.Context) error {
	for {
		wait, ok := c.server.callRate.Take(c.caller.Node, 1)
		if ok {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

func (c *configStream) unwatch(id string) error {
	if sj, ok := c.subjects[id]; ok {
		sj.end(c.server.p.Engine)
		delete(c.subjects, id)
		delete(c.watches, sj.seq)
	}
	c.bodies.drop(id)
	return c.stream.Send(envelope(&nodev1.Envelope{Subject: id}))
}

func (c *configStream) ack(ack *nodev1.Ack) error {
	seq, nonce, _ := strings.Cut(ack.GetNonce(), ".")
	sj, ok := c.watches[seq]
	if !ok || sj.sub == nil || nonce == "" {
		return nil // of a subject that is gone, or nothing to settle
	}
	if ack.GetError() != "" {
		c.server.p.Log.Warn("a proxy's configuration was refused by its agent", "node", c.caller.Node, "subject", sj.subject.GetId(), "error", shorten(ack.GetError(), 1024))
	}
	return sj.sub.Request(distribute.Request{Type: envelopeType, Nonce: nonce, Error: shorten(ack.GetError(), 1024)})
}

func (c *configStream) compileAffected(ctx context.Context) error {
	c.mu.Lock()
	affected := c.affected
	c.affected = nil
	c.mu.Unlock()
	for _, sj := range c.subjects {
		for _, f := range affected {
			if f == nil || f(c.caller.Node, sj.subject) {
				if err := c.compile(ctx, sj); err != nil {
					return err
				}
				break
			}
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// compile brings the subject's scope up to date, or tells the agent why it
// cannot. A node that lost the entry loses the configuration; after any other
// failure the last good one stays.
func (c *configStream) compile(ctx context.Context, sj *subject) error {
	s := c.server
	_, _, err := s.entitled(c.caller, sj.subject.GetEntry(), sj.subject.GetSpiffeId())
	lost := err != nil && (fault.Is(err, fault.Denied) || fault.Is(err, fault.Invalid))
	var resources []*distribute.Resource
	if err == nil {
		resources, err = s.p.Subjects.Compile(c.caller.Node, sj.subject)
	}
	if err != nil {
		if lost {
			s.p.Engine.Drop(sj.scope)
		}
		s.refused(ctx, Refusal{Node: c.caller.Node, Action: "Config", Object: sj.subject.GetSpiffeId(), Err: err})
		if sj.refused == err.Error() {
			return nil
		}
		sj.refused = err.Error()
		return c.refuse(sj.subject.GetId(), err)
	}
	wrapped := make([]*distribute.Resource, len(resources))
	for i, r := range resources {
		wrapped[i] = &distribute.Resource{Type: envelopeType, Name: r.Type + " " + r.Name, Version: r.Version, Body: r.Body}
	}
	s.p.Engine.Replace(sj.scope, wrapped)
	if sj.refused != "" {
		sj.refused = ""
		return c.stream.Send(envelope(&nodev1.Envelope{Subject: sj.subject.GetId(), Nonce: sj.seq + "."})) // served again
	}
	return nil
}

func (c *configStream) refuse(id string, err error) error {
	return c.stream.Send(envelope(&nodev1.Envelope{Subject: id, Refusal: refusalOf(err)}))
}

func (c *configStream) send(p push) error {
	id := p.subject.subject.GetId()
	if c.subjects[id] != p.subject {
		return nil // unwatched meanwhile
	}
	e := &nodev1.Envelope{Nonce: p.subject.seq + "." + p.response.Nonce, Subject: id}
	if p.subject.refused != "" && len(p.response.Resources) == 0 && len(p.response.Removed) == 0 {
		return p.subject.sub.Request(distribute.Request{Type: envelopeType, Nonce: p.response.Nonce})
	}
	for _, r := range p.response.Resources {
		typeURL, name, _ := strings.Cut(r.Name, " ")
		item := &nodev1.ConfigResource{TypeUrl: typeURL, Name: name, Hash: r.Version}
		if !c.bodies.has(r.Version) {
			item.Body = r.Body
		}
		c.bodies.add(r.Version)
		e.Resources = append(e.Resources, item)
	}
	for _, full := range p.response.Removed {
		typeURL, name, _ := strings.Cut(full, " ")
		e.Removed = append(e.Removed, &nodev1.ConfigName{TypeUrl: typeURL, Name: name})
	}
	for _, r := range p.response.Resources {
		c.bodies.set(id, r.Name, r.Version)
		c.bodies.release(r.Version)
	}
	for _, full := range p.response.Removed {
		c.bodies.set(id, full, "")
	}
	return c.stream.Send(envelope(e))
}

func envelope(e *nodev1.Envelope) *nodev1.ConfigResponse {
	return &nodev1.ConfigResponse{Message: &nodev1.ConfigResponse_Envelope{Envelope: e}}
}
