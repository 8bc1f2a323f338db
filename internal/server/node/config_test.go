package node_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"google.golang.org/grpc"
)

type configClient struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[nodev1.ConfigRequest, nodev1.ConfigResponse]
}

func openConfig(t *testing.T, conn *grpc.ClientConn) configClient {
	t.Helper()
	stream, err := nodev1.NewNodeClient(conn).Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := configClient{t, stream}
	c.send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Hello{Hello: hello()}})
	if res, err := stream.Recv(); err != nil || res.GetHello().GetProtocol() != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	return c
}

func (c configClient) send(r *nodev1.ConfigRequest) {
	c.t.Helper()
	if err := c.stream.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

func (c configClient) watch(s *nodev1.Subject) {
	c.t.Helper()
	c.send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Watch{Watch: s}})
}

// next is the next envelope; it is acknowledged.
func (c configClient) next() *nodev1.Envelope {
	c.t.Helper()
	e := c.unanswered()
	if e.GetNonce() != "" {
		c.send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Ack{Ack: &nodev1.Ack{Nonce: e.GetNonce()}}})
	}
	return e
}

func (c configClient) unanswered() *nodev1.Envelope {
	c.t.Helper()
	res, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return res.GetEnvelope()
}

func show(e *nodev1.Envelope) string {
	var out []string
	for _, r := range e.GetResources() {
		out = append(out, fmt.Sprintf("%s=%s", r.GetName(), r.GetBody()))
	}
	for _, r := range e.GetRemoved() {
		out = append(out, "-"+r.GetName())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func subject(id, name string) *nodev1.Subject {
	return &nodev1.Subject{Id: id, Entry: "default/" + name, SpiffeId: "spiffe://example.org/ns/default/sa/" + name}
}

// bodies compiles every subject into name → body.
func bodies(m map[string]string) func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
	return func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
		var out []*distribute.Resource
		for name, body := range m {
			out = append(out, distribute.NewResource("type.example/T", name, []byte(body)))
		}
		return out, nil
	}
}

func TestConfigTravelsOncePerHash(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetCompile(bodies(map[string]string{"a": "A", "b": "B", "c": "A"}))
	c := openConfig(t, conn)
	c.watch(subject("s1", "web"))
	if got := show(c.next()); got != "a=A b=B c=" {
		t.Fatalf("first subject: %s; want each body once", got)
	}
	c.watch(subject("s2", "web"))
	if got := show(c.next()); got != "a= b= c=" {
		t.Fatalf("second subject: %s; want hashes only", got)
	}
	p.SetCompile(bodies(map[string]string{"a": "A", "b": "B2"}))
	seen := []string{show(c.next()), show(c.next())}
	slices.Sort(seen)
	if seen[0] != "-c b=" || seen[1] != "-c b=B2" {
		t.Fatalf("only what changed, its body once: %q", seen)
	}
	c.send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Unwatch{Unwatch: "s1"}})
	if e := c.next(); e.GetSubject() != "s1" || e.GetNonce() != "" || show(e) != "" || e.GetRefusal() != nil {
		t.Fatalf("the last envelope: %v", e)
	}
	p.SetCompile(bodies(map[string]string{"a": "A", "b": "B"}))
	if got := show(c.next()); got != "b=B" {
		t.Fatalf("a body nobody referred to any more: %s; want it sent again", got)
	}
}

func TestHeldConfigIsNotSentAgain(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetCompile(bodies(map[string]string{"a": "A", "b": "B2"}))
	s := subject("s1", "web")
	for name, body := range map[string]string{"a": "A", "b": "B", "c": "C"} {
		s.Held = append(s.Held, &nodev1.ResourceVersion{Type: "type.example/T", Name: name, Version: distribute.VersionOf([]byte(body))})
	}
	c := openConfig(t, conn)
	c.watch(s)
	if got := show(c.next()); got != "-c b=B2" {
		t.Fatalf("%s; want the differences to what is held", got)
	}
	p.SetCompile(bodies(map[string]string{"a": "A", "b": "B2", "d": "A"}))
	if got := show(c.next()); got != "d=" {
		t.Fatalf("%s; want no body for a hash that was held", got)
	}
}

// A49: the configuration of another node's subject, by any spelling.
func TestA49SubjectOfAnotherNodeIsRefused(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	p.SetCompile(func(_ string, s *nodev1.Subject) ([]*distribute.Resource, error) {
		if s.GetEntry() != "default/web" {
			t.Errorf("compiled for %v", s)
		}
		return []*distribute.Resource{distribute.NewResource("type.example/T", "secret", []byte("of "+s.GetEntry()))}, nil
	})
	c := openConfig(t, conn)
	for name, s := range map[string]*nodev1.Subject{
		"another node's entry":                  subject("s1", "db"),
		"its entry under another's identity":    {Id: "s2", Entry: "default/web", SpiffeId: "spiffe://example.org/ns/default/sa/db"},
		"another's entry under its identity":    {Id: "s3", Entry: "default/db", SpiffeId: "spiffe://example.org/ns/default/sa/web"},
		"the control plane's identity":          {Id: "s4", Entry: "default/web", SpiffeId: "spiffe://example.org/legation/server"},
		"an id that reads like another's scope": {Id: "s5/../../db-1/s1", Entry: "default/db", SpiffeId: "spiffe://example.org/ns/default/sa/db"},
	} {
		c.watch(s)
		e := c.next()
		if e.GetSubject() != s.GetId() || e.GetRefusal().GetKind() != "denied" || len(e.GetResources()) > 0 {
			t.Errorf("%s: %v", name, e)
		}
	}
	c.watch(subject("mine", "web"))
	if got := show(c.next()); got != "secret=of default/web" {
		t.Fatalf("its own: %s", got)
	}
	denied := 0
	for _, r := range p.Refusals() {
		if r.Action == "Config" && r.Node == "web-1" {
			denied++
		}
	}
	if denied != 5 {
		t.Fatalf("%d audited; want 5", denied)
	}
	// The right goes away while the stream is open: so does the configuration.
	p.RemoveEntry("web-1", "default/web")
	p.Server.Recompile(nil)
	var removed, refused bool
	for !removed || !refused {
		e := c.next()
		removed = removed || show(e) == "-secret"
		refused = refused || e.GetRefusal().GetKind() == "denied"
	}
}

// A54: a subject that does not compile stops neither its last good
// configuration nor the other subjects.
func TestA54SubjectThatDoesNotCompileHarmsNoOther(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	good := bodies(map[string]string{"a": "A"})
	p.SetCompile(good)
	c := openConfig(t, conn)
	for _, id := range []string{"good", "bad"} {
		c.watch(subject(id, "web"))
		if got := show(c.next()); !strings.HasPrefix(got, "a=") {
			t.Fatal(got)
		}
	}
	p.SetCompile(func(n string, s *nodev1.Subject) ([]*distribute.Resource, error) {
		if s.GetId() == "bad" {
			return nil, fault.New(fault.Conflict, "two services claim port 80")
		}
		return bodies(map[string]string{"a": "A2"})(n, s)
	})
	for range 2 {
		e := c.next()
		switch e.GetSubject() {
		case "good":
			if show(e) != "a=A2" {
				t.Fatalf("%v", e)
			}
		case "bad":
			if e.GetRefusal().GetKind() != "conflict" || show(e) != "" {
				t.Fatalf("%v", e)
			}
		}
	}
	p.SetCompile(good)
	served := false
	for range 2 {
		e := c.next()
		served = served || e.GetSubject() == "bad" && e.GetRefusal() == nil && e.GetNonce() != ""
	}
	if !served {
		t.Fatal("nothing told that the subject is served again")
	}
}

func TestRefusedConfigStandsInTheLedger(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetCompile(bodies(map[string]string{"a": "A"}))
	c := openConfig(t, conn)
	c.watch(subject("s1", "web"))
	e := c.unanswered()
	c.send(&nodev1.ConfigRequest{Message: &nodev1.ConfigRequest_Ack{Ack: &nodev1.Ack{Nonce: e.GetNonce(), Error: "bad listener"}}})
	nodetest.Eventually(t, "the refusal is in the ledger", func() bool {
		lines := p.Engine.Statuses(distribute.Filter{Subscriber: "node/web-1/s1", Behind: true})
		return len(lines) == 1 && lines[0].Error == "bad listener" && lines[0].Name == "type.example/T a"
	})
}

func TestRecompileTouchesOnlyTheAffected(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	compiled := make(chan string, 100)
	p.SetCompile(func(_ string, s *nodev1.Subject) ([]*distribute.Resource, error) {
		compiled <- s.GetId()
		return nil, nil
	})
	c := openConfig(t, conn)
	for _, id := range []string{"s1", "s2"} {
		c.watch(subject(id, "web"))
		c.next()
		<-compiled
	}
	p.Server.Recompile(func(node string, s *nodev1.Subject) bool { return node == "web-1" && s.GetId() == "s2" })
	if got := <-compiled; got != "s2" {
		t.Fatalf("compiled %s", got)
	}
	select {
	case got := <-compiled:
		t.Fatalf("compiled %s too", got)
	case <-time.After(20 * time.Millisecond):
	}
}

func TestScopesGoWithTheStream(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetCompile(bodies(map[string]string{"a": "A"}))
	c := openConfig(t, conn)
	c.watch(subject("s1", "web"))
	c.next()
	conn.Close()
	nodetest.Eventually(t, "no subscriber is left", func() bool { return len(p.Engine.Subscribers()) == 0 })
}
