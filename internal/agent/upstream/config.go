package upstream

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// ConfigUpdate is what became of one subject.
type ConfigUpdate struct {
	// Changes to its resources, scope "session/<subject>", ready for an
	// Engine; bodies are shared between subjects. May be empty.
	Changes []distribute.Change
	// Refusal says why the subject cannot be served now; nil when it is. What
	// it had stays, unless Changes take it away.
	Refusal *nodev1.Refusal
}

// SessionScope is the scope that the changes of a subject are for.
func SessionScope(subject string) distribute.Scope { return distribute.Scope("session/" + subject) }

// configs is which subjects are wanted, and what each was given.
type configs struct {
	mu      sync.Mutex // guards all below
	wanted  map[string]*nodev1.Subject
	given   map[string]map[resourceKey]*distribute.Resource // accepted by OnConfig
	dropped map[string]bool                                 // unwatched since the stream last looked
	asked   map[string]bool                                 // by the open stream: its answer replaces the cache
	changed chan struct{}                                   // one token: wanted changed, for the stream
	offline chan struct{}                                   // the same, for serving from the cache
	kept    map[contentKey]*kept                            // beyond watches and restarts
	order   []contentKey                                    // of kept, least recently given first

	giving sync.Mutex // held over OnConfig; taken before mu
}

type resourceKey struct{ typeURL, name string }

func newConfigs() *configs {
	return &configs{wanted: map[string]*nodev1.Subject{}, given: map[string]map[resourceKey]*distribute.Resource{}, dropped: map[string]bool{}, asked: map[string]bool{}, changed: make(chan struct{}, 1),
		offline: make(chan struct{}, 1), kept: map[contentKey]*kept{}}
}

func (c *configs) wake() {
	raise(c.changed)
	raise(c.offline)
}

// unasked notes that no stream is open.
func (c *configs) unasked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.asked)
}

// WatchSubject asks for a proxy's configuration until UnwatchSubject; a
// subject of the same id is replaced. OnConfig gets it.
func (l *Link) WatchSubject(subject *nodev1.Subject) {
	subject = proto.Clone(subject).(*nodev1.Subject)
	subject.Held = nil
	l.configs.mu.Lock()
	l.configs.wanted[subject.GetId()] = subject
	l.configs.mu.Unlock()
	l.configs.wake()
}

// UnwatchSubject ends a watch; OnConfig is not called for it again, but a
// call may be under way.
func (l *Link) UnwatchSubject(id string) {
	l.configs.mu.Lock()
	delete(l.configs.wanted, id)
	delete(l.configs.given, id)
	l.configs.dropped[id] = true
	l.configs.mu.Unlock()
	l.configs.wake()
}

// configStream is one open config stream, owned by its goroutine. It counts
// what the control plane believes is here as the control plane does
// (Envelope in node.proto).
type configStream struct {
	link     *Link
	stream   grpc.BidiStreamingClient[nodev1.ConfigRequest, nodev1.ConfigResponse]
	sent     map[string]*nodev1.Subject        // watches of this stream
	ending   map[string]int                    // unwatches not answered yet
	names    map[string]map[resourceKey]string // hash by name, as last sent
	bodies   map[string]*body                  // by hash
	refusals map[string]bool                   // OnConfig was told of a refusal
}

type body struct {
	bytes      []byte
	references int
}

// followConfig keeps the wanted subjects watched and hands on what comes.
func (l *Link) followConfig(ctx context.Context, s *session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := s.client.Config(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Hello{Hello: l.hello()}}); err != nil {
		_, err = stream.Recv()
		return err
	}
	responses := pump(cancel, 16, stream.Recv)
	defer drained(responses, cancel)
	first, err := within(ctx, responses, helloTimeout)
	if err != nil {
		return err
	}
	if err := l.checkHello(first.GetHello()); err != nil {
		return err
	}
	c := &configStream{link: l, stream: stream, sent: map[string]*nodev1.Subject{}, ending: map[string]int{},
		names: map[string]map[resourceKey]string{}, bodies: map[string]*body{}, refusals: map[string]bool{}}
	defer l.configs.unasked()
	l.configs.wake()
	for {
		err = nil
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.configs.changed:
			err = c.ask()
		case res, ok := <-responses:
			if !ok {
				return context.Cause(ctx)
			}
			if e := res.GetEnvelope(); e != nil {
				err = c.take(e)
			}
		}
		if errors.Is(err, io.EOF) { // a send failed
			return broken(ctx, responses)
		}
		if err != nil {
			return err
		}
	}
}

// ask brings the watches of the stream in line with what is wanted.
func (c *configStream) ask() error {
	cf := c.link.configs
	cf.mu.Lock()
	wanted, dropped := maps.Clone(cf.wanted), cf.dropped
	cf.dropped = map[string]bool{}
	cf.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(c.sent)) {
		if wanted[id] != nil && !dropped[id] {
			continue
		}
		delete(c.sent, id)
		cf.mu.Lock()
		delete(cf.asked, id)
		cf.mu.Unlock()
		c.ending[id]++
		if err := c.stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Unwatch{Unwatch: id}}); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		subject, old := wanted[id], c.sent[id]
		if old != nil && (old == subject || proto.Equal(old, subject)) {
			continue
		}
		ask := subject
		if old == nil {
			ask = c.hold(subject)
		}
		c.sent[id] = subject
		if err := c.stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Watch{Watch: ask}}); err != nil {
			return err
		}
	}
	return nil
}

// hold is the subject with what it was given on earlier streams, which counts
// as sent from now on.
func (c *configStream) hold(subject *nodev1.Subject) *nodev1.Subject {
	id := subject.GetId()
	cf := c.link.configs
	cf.giving.Lock() // what is being given from the cache is held too
	cf.mu.Lock()
	given := maps.Clone(cf.given[id])
	cf.asked[id] = true
	cf.mu.Unlock()
	cf.giving.Unlock()
	// While an earlier watch of this id is being ended, its names are counted
	// until the last envelope; then everything is sent anew.
	if len(given) == 0 || c.ending[id] > 0 {
		return subject
	}
	ask := proto.Clone(subject).(*nodev1.Subject)
	for key, r := range given {
		ask.Held = append(ask.Held, &nodev1.ResourceVersion{Type: key.typeURL, Name: key.name, Version: r.Version})
		c.keep(r.Version, r.Body)
		c.refer(id, key, r.Version)
		c.release(r.Version)
	}
	return ask
}

func (c *configStream) keep(hash string, bytes []byte) {
	b := c.bodies[hash]
	if b == nil {
		b = &body{bytes: bytes}
		c.bodies[hash] = b
	}
	b.references++
}

func (c *configStream) release(hash string) {
	if b := c.bodies[hash]; b != nil {
		if b.references--; b.references <= 0 {
			delete(c.bodies, hash)
		}
	}
}

// refer makes a subject's name refer to a hash; "" removes the name.
func (c *configStream) refer(subject string, key resourceKey, hash string) {
	names := c.names[subject]
	old, had := names[key]
	if hash != "" {
		c.keep(hash, nil)
		if names == nil {
			names = map[resourceKey]string{}
			c.names[subject] = names
		}
		names[key] = hash
	} else {
		delete(names, key)
	}
	if had {
		c.release(old)
	}
}

// take applies one envelope: to the counts in any case, to the subject if
// everything in it is good.
func (c *configStream) take(e *nodev1.Envelope) error {
	id := e.GetSubject()
	if e.GetNonce() == "" && e.GetRefusal() == nil { // the last one of an unwatched subject
		for _, hash := range c.names[id] {
			c.release(hash)
		}
		delete(c.names, id)
		if c.ending[id]--; c.ending[id] <= 0 {
			delete(c.ending, id)
		}
		return nil
	}
	changes, err := c.receive(e)
	if c.ending[id] > 0 || c.sent[id] == nil {
		return c.answer(e, nil) // nobody wants it any more
	}
	if err == nil {
		err = c.give(id, ConfigUpdate{Changes: changes, Refusal: e.GetRefusal()})
	}
	if err != nil {
		c.link.p.Log.Error("a proxy's configuration is refused; the last good one stays", "subject", id, "reason", err)
	}
	return c.answer(e, err)
}

// receive counts the envelope and makes changes of it.
func (c *configStream) receive(e *nodev1.Envelope) ([]distribute.Change, error) {
	id := e.GetSubject()
	var problems error
	var changes []distribute.Change
	for _, r := range e.GetResources() {
		if len(r.GetBody()) > 0 {
			c.keep(r.GetHash(), r.GetBody())
		} else {
			c.keep(r.GetHash(), nil)
		}
		b := c.bodies[r.GetHash()]
		if b.bytes == nil {
			b.bytes = r.GetBody()
		}
		res := &distribute.Resource{Type: r.GetTypeUrl(), Name: r.GetName(), Version: r.GetHash(), Body: b.bytes}
		if distribute.VersionOf(b.bytes) != r.GetHash() || r.GetTypeUrl() == "" || strings.Contains(r.GetTypeUrl(), " ") {
			problems = errors.Join(problems, fault.New(fault.Invalid, "%s %q: its %d bytes do not have the hash %s", r.GetTypeUrl(), r.GetName(), len(b.bytes), r.GetHash()))
		}
		changes = append(changes, distribute.Change{Scope: SessionScope(id), Type: res.Type, Name: res.Name, Resource: res})
	}
	for _, n := range e.GetRemoved() {
		changes = append(changes, distribute.Change{Scope: SessionScope(id), Type: n.GetTypeUrl(), Name: n.GetName()})
	}
	for _, r := range e.GetResources() {
		c.refer(id, resourceKey{r.GetTypeUrl(), r.GetName()}, r.GetHash())
		c.release(r.GetHash())
	}
	for _, n := range e.GetRemoved() {
		c.refer(id, resourceKey{n.GetTypeUrl(), n.GetName()}, "")
	}
	return changes, problems
}

// give hands on what is news.
func (c *configStream) give(id string, update ConfigUpdate) error {
	if len(update.Changes) == 0 && update.Refusal == nil && !c.refusals[id] {
		return nil
	}
	if err := c.link.give(id, update, false); err != nil {
		return err
	}
	if update.Refusal != nil {
		c.refusals[id] = true
	} else {
		delete(c.refusals, id)
	}
	return nil
}

func (c *configStream) answer(e *nodev1.Envelope, err error) error {
	if e.GetNonce() == "" {
		return nil
	}
	ack := &nodev1.Ack{Nonce: e.GetNonce()}
	if err != nil {
		ack.Error = err.Error()
	}
	return c.stream.Send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Ack{Ack: ack}})
}
