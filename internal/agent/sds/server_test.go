package sds

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	theirs   = distribute.Scope("session/theirs")
	unheard  = "type.googleapis.com/nobody.knows.v9.This"
	patience = 5 * time.Second
)

// office is a door with a client, without an Envoy.
type office struct {
	*testing.T
	engine *distribute.Engine
	server *Server
	log    *logBuffer
	ctx    context.Context
	conn   *grpc.ClientConn
	done   chan struct{} // ends attachments

	mu     sync.Mutex
	nodes  []string
	closed int
}

func newOffice(t *testing.T, maxNames int) *office {
	o := &office{T: t, engine: distribute.New(distribute.Params{}), log: &logBuffer{}, done: make(chan struct{})}
	o.server = New(Params{
		Engine: o.engine, MaxNames: maxNames, Registerer: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(o.log, nil)),
		Authorise: func(context.Context) (*Attachment, error) {
			return &Attachment{
				Subscriber: "me", Scopes: []distribute.Scope{mine}, Done: o.done,
				Missing:       func(_, name string) string { return "no entry has " + name },
				OnRequestNode: func(id string) { o.mu.Lock(); o.nodes = append(o.nodes, id); o.mu.Unlock() },
				Closed:        func() { o.mu.Lock(); o.closed++; o.mu.Unlock() },
			}, nil
		},
	})
	conn, err := grpc.NewClient("unix:"+serve(t, o.server), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	o.conn, o.ctx = conn, ctx
	return o
}

func (o *office) set(scope distribute.Scope, typ, name, body string) {
	o.engine.Apply(distribute.Change{Scope: scope, Resource: distribute.NewResource(typ, name, []byte(body))})
}

func (o *office) unset(scope distribute.Scope, typ, name string) {
	o.engine.Apply(distribute.Change{Scope: scope, Type: typ, Name: name})
}

type deltaClient struct {
	*testing.T
	grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
}

func (o *office) delta() deltaClient {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(o.conn).DeltaAggregatedResources(o.ctx)
	if err != nil {
		o.Fatal(err)
	}
	return deltaClient{o.T, s}
}

// expect receives, compares and acknowledges: "a=1 -b".
func (c deltaClient) expect(want string) {
	c.Helper()
	m, err := c.Recv()
	if err != nil {
		c.Fatalf("waiting for %q: %v", want, err)
	}
	var parts []string
	for _, r := range m.Resources {
		if r.Resource.TypeUrl != m.TypeUrl || r.Version != distribute.VersionOf(r.Resource.Value) {
			c.Errorf("%s: type %s, version %s", r.Name, r.Resource.TypeUrl, r.Version)
		}
		parts = append(parts, r.Name+"="+string(r.Resource.Value))
	}
	for _, name := range m.RemovedResources {
		parts = append(parts, "-"+name)
	}
	if got := strings.Join(parts, " "); got != want {
		c.Fatalf("told %q, want %q", got, want)
	}
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: m.TypeUrl, ResponseNonce: m.Nonce})
}

func (c deltaClient) ask(m *discoveryv3.DeltaDiscoveryRequest) {
	c.Helper()
	if m.TypeUrl == "" {
		m.TypeUrl = TypeSecret
	}
	if err := c.Send(m); err != nil {
		c.Fatal(err)
	}
}

type sotwClient struct {
	*testing.T
	grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	names map[string][]string
}

func (o *office) sotw() *sotwClient {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(o.conn).StreamAggregatedResources(o.ctx)
	if err != nil {
		o.Fatal(err)
	}
	return &sotwClient{o.T, s, map[string][]string{}}
}

func (c *sotwClient) ask(typ, nonce string, names ...string) {
	c.Helper()
	c.names[typ] = names
	if err := c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typ, ResponseNonce: nonce, ResourceNames: names}); err != nil {
		c.Fatal(err)
	}
}

func (c *sotwClient) expect(want ...string) *discoveryv3.DiscoveryResponse {
	c.Helper()
	m, err := c.Recv()
	if err != nil {
		c.Fatalf("waiting for %v: %v", want, err)
	}
	var got []string
	for _, r := range m.Resources {
		got = append(got, string(r.Value))
	}
	if !slices.Equal(got, want) || m.VersionInfo == "" || m.Nonce == "" {
		c.Fatalf("told %v (version %q, nonce %q), want %v", got, m.VersionInfo, m.Nonce, want)
	}
	return m
}

func (c *sotwClient) ack(m *discoveryv3.DiscoveryResponse) {
	c.Helper()
	c.ask(m.TypeUrl, m.Nonce, c.names[m.TypeUrl]...)
}

func (o *office) until(what string, f func() bool) {
	o.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			o.Fatalf("waited in vain until %s; log:\n%s", what, o.log)
		}
	}
}

func (o *office) line(name string) (l distribute.Status) {
	if lines := o.engine.Statuses(distribute.Filter{Name: name}); len(lines) > 0 {
		l = lines[0]
	}
	return l
}

func TestDeltaStreamCarriesTypesSideBySide(t *testing.T) {
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "default", "s1")
	o.set(mine, typeCluster, "c", "c1")
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}, Node: &corev3.Node{Id: "n"}})
	c.expect("default=s1")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeCluster, Node: &corev3.Node{Id: "another"}})
	c.expect("c=c1")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: unheard})
	c.expect("")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: unheard, ResourceNamesSubscribe: []string{"x"}})
	c.expect("-x")
	o.set(mine, TypeSecret, "default", "s2")
	c.expect("default=s2")
	o.until("the acknowledgement is in the ledger", func() bool { return o.line("default").Acked == distribute.VersionOf([]byte("s2")) })

	o.set(mine, TypeSecret, "default", "s3")
	m, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: m.Nonce, ErrorDetail: &rpcstatus.Status{Code: 13, Message: "no key " + strings.Repeat("x", 5000)}})
	o.until("the refusal is in the ledger", func() bool {
		l := o.line("default")
		return strings.HasPrefix(l.Error, "no key") && len(l.Error) <= maxReason && l.Acked == distribute.VersionOf([]byte("s2"))
	})
	o.mu.Lock()
	if !slices.Equal(o.nodes, []string{"n"}) {
		t.Errorf("nodes %v", o.nodes)
	}
	o.mu.Unlock()
	c.CloseSend()
	if _, err := c.Recv(); err == nil {
		t.Error("the stream goes on after the client closed it")
	}
	o.until("the attachment is closed", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return o.closed == 1 })
	if got := o.engine.Subscribers(); len(got) != 0 {
		t.Errorf("still attached: %v", got)
	}
}

func TestANameThatCannotBeServedLeavesTheStreamOpen(t *testing.T) {
	o := newOffice(t, 0)
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"late"}})
	c.expect("-late")
	c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"late"}})
	c.expect("-late")
	o.set(mine, TypeSecret, "late", "1")
	c.expect("late=1")
	if n := strings.Count(o.log.String(), "no entry has late"); n != 1 {
		t.Errorf("explained %d times:\n%s", n, o.log)
	}
	if n := testutil.ToFloat64(o.server.metrics.missing); n != 1 {
		t.Errorf("counted %v times", n)
	}
	s := o.sotw()
	s.ask(TypeSecret, "", "later", "late")
	m := s.expect("1")
	s.ack(m)
	o.set(mine, TypeSecret, "later", "2")
	s.expect("2")
	if n := testutil.ToFloat64(o.server.metrics.missing); n != 2 {
		t.Errorf("counted %v times", n)
	}
}

func TestStateOfTheWorldSendsEverythingOfListenersAndClusters(t *testing.T) {
	o := newOffice(t, 0)
	c := o.sotw()
	c.ask(typeCluster, "")
	c.ack(c.expect())
	o.set(mine, typeCluster, "a", "a1")
	first := c.expect("a1")
	c.ack(first)
	o.set(mine, typeCluster, "b", "b1")
	m := c.expect("a1", "b1")
	if m.VersionInfo == first.VersionInfo {
		t.Error("different content, same version")
	}
	c.ack(m)
	o.unset(mine, typeCluster, "b")
	m = c.expect("a1")
	if m.VersionInfo != first.VersionInfo {
		t.Error("same content, different version")
	}
	c.ack(m)
	o.unset(mine, typeCluster, "a")
	c.ack(c.expect())
	// From the legacy wildcard to names: here "no names any more" is nothing.
	o.set(mine, typeCluster, "a", "a2")
	m = c.expect("a2")
	c.ask(typeCluster, m.Nonce, "b")
	c.ack(c.expect())
	o.set(mine, typeCluster, "a", "a3")
	o.set(mine, typeCluster, "b", "b3")
	c.ack(c.expect("b3"))
}

func TestStateOfTheWorldSendsOnlyWhatChangedOfOthers(t *testing.T) {
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "a", "a1")
	o.set(mine, TypeSecret, "b", "b1")
	c := o.sotw()
	c.ask(TypeSecret, "from an earlier stream", "a", "b")
	m1 := c.expect("a1", "b1")
	c.ack(m1)
	o.set(mine, TypeSecret, "b", "b2")
	m2 := c.expect("b2")
	// A stale nonce is ignored with all that is in the request.
	c.ask(TypeSecret, m1.Nonce, "a")
	if err := c.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeSecret, ResponseNonce: m2.Nonce, ResourceNames: []string{"a", "b"},
		ErrorDetail: &rpcstatus.Status{Message: "bad"}}); err != nil {
		t.Fatal(err)
	}
	o.until("the refusal is in the ledger", func() bool { return o.line("b").Error == "bad" })
	if got := o.line("b").Acked; got != distribute.VersionOf([]byte("b1")) {
		t.Errorf("acknowledged %s", got)
	}
	// What is removed cannot be said, and does not stop what follows.
	o.unset(mine, TypeSecret, "a")
	o.set(mine, TypeSecret, "b", "b3")
	m3 := c.expect("b3")
	// Leaving a name and coming back is answered.
	c.ask(TypeSecret, m3.Nonce)
	c.ask(TypeSecret, m3.Nonce, "b")
	c.expect("b3")
}

func TestUnaryFetch(t *testing.T) {
	o := newOffice(t, 3)
	o.set(mine, TypeSecret, "a", "a1")
	o.set(mine, TypeSecret, "b", "b1")
	o.set(theirs, TypeSecret, "c", "c1")
	client := secretv3.NewSecretDiscoveryServiceClient(o.conn)
	for name, c := range map[string]struct {
		ask  []string
		want []string
		code codes.Code
		says string
	}{
		"by name":                             {ask: []string{"b", "b"}, want: []string{"b1"}},
		"without names everything it may see": {want: []string{"a1", "b1"}},
		"the wildcard too":                    {ask: []string{"*"}, want: []string{"a1", "b1"}},
		"a missing name is explained":         {ask: []string{"a", "x"}, code: codes.NotFound, says: "x: no entry has x"},
		"another's name is missing":           {ask: []string{"c"}, code: codes.NotFound, says: "c: no entry has c"},
		"too many names":                      {ask: []string{"1", "2", "3", "4"}, code: codes.ResourceExhausted, says: "limit is 3"},
		"a name too long":                     {ask: []string{strings.Repeat("x", maxName+1)}, code: codes.ResourceExhausted, says: "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := client.FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{ResourceNames: c.ask})
			if status.Code(err) != c.code || c.says != "" && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			var got []string
			for _, r := range m.GetResources() {
				got = append(got, string(r.Value))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestLimitsOfAStreamAreTyped(t *testing.T) {
	for name, c := range map[string]struct {
		ask  *discoveryv3.DeltaDiscoveryRequest
		code codes.Code
	}{
		"too many names":      {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, ResourceNamesSubscribe: []string{"a", "b", "c", "d"}}, codes.ResourceExhausted},
		"a name too long":     {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, ResourceNamesSubscribe: []string{strings.Repeat("x", maxName+1)}}, codes.ResourceExhausted},
		"a type too long":     {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: strings.Repeat("x", maxName+1)}, codes.ResourceExhausted},
		"no type on ADS":      {&discoveryv3.DeltaDiscoveryRequest{}, codes.InvalidArgument},
		"a message too large": {&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeSecret, Node: &corev3.Node{Id: strings.Repeat("x", maxMessage)}}, codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t, 3)
			s := o.delta()
			if err := s.Send(c.ask); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); status.Code(err) != c.code {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAStreamEndsWhenItsAttachmentDoes(t *testing.T) {
	o := newOffice(t, 0)
	c := o.delta()
	c.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeCluster})
	c.expect("")
	close(o.done)
	if _, err := c.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v", err)
	}
}

func TestADeniedCallerReadsWhy(t *testing.T) {
	s := New(Params{Engine: distribute.New(distribute.Params{}), Authorise: func(context.Context) (*Attachment, error) {
		return nil, fault.New(fault.Denied, "uid 1000 has no session here")
	}})
	conn, err := grpc.NewClient("unix:"+serve(t, s), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := secretv3.NewSecretDiscoveryServiceClient(conn)
	_, unary := client.FetchSecrets(context.Background(), &discoveryv3.DiscoveryRequest{})
	stream, err := client.DeltaSecrets(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, streamed := stream.Recv()
	for _, err := range []error{unary, streamed} {
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no session here") {
			t.Errorf("%v", err)
		}
	}
}

// A proxy asks for another's secret in every way the protocol has.
func TestA49NoNameReachesOutsideTheScopes(t *testing.T) {
	const secret = "spiffe://example.org/ns/a/sa/theirs"
	o := newOffice(t, 0)
	o.set(mine, TypeSecret, "default", "mine")
	o.set(theirs, TypeSecret, secret, "THEIRS")
	o.set(theirs, TypeSecret, "default", "THEIRS")
	forged := &corev3.Node{Id: "theirs", Cluster: "session/theirs"}
	names := []string{secret, string(theirs), "session/theirs/default", "../theirs/default", "default\x00", "*/default", "xdstp://session/theirs/default"}

	t.Run("delta", func(t *testing.T) {
		c := o.delta()
		c.T = t
		c.ask(&discoveryv3.DeltaDiscoveryRequest{Node: forged, ResourceNamesSubscribe: []string{secret}, InitialResourceVersions: map[string]string{secret: distribute.VersionOf([]byte("THEIRS"))}})
		c.expect("-" + secret)
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"*"}})
		c.expect("default=mine")
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{secret}})
		c.expect("-" + secret)
		c.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{secret}, ResourceNamesUnsubscribe: []string{secret}})
		c.expect("-" + secret)
		for _, name := range names {
			c.ask(&discoveryv3.DeltaDiscoveryRequest{Node: forged, ResourceNamesSubscribe: []string{name}})
			c.expect("-" + name)
		}
		o.set(theirs, TypeSecret, secret, "THEIRS again")
		o.set(mine, TypeSecret, "default", "mine again")
		c.expect("default=mine again")
	})
	t.Run("state of the world", func(t *testing.T) {
		c := o.sotw()
		c.T = t
		c.ask(TypeSecret, "", append(slices.Clone(names), "*", "default")...)
		m := c.expect("mine again")
		c.ask(TypeSecret, m.Nonce, secret)
		o.set(theirs, TypeSecret, secret, "THEIRS once more")
		c.ask(TypeSecret, m.Nonce, "default", secret)
		c.expect("mine again")
	})
	t.Run("unary", func(t *testing.T) {
		for _, name := range names {
			m, err := secretv3.NewSecretDiscoveryServiceClient(o.conn).FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{Node: forged, ResourceNames: []string{name}})
			if status.Code(err) != codes.NotFound {
				t.Errorf("%q: %v %v", name, m, err)
			}
		}
		m, err := secretv3.NewSecretDiscoveryServiceClient(o.conn).FetchSecrets(o.ctx, &discoveryv3.DiscoveryRequest{Node: forged})
		if err != nil || len(m.Resources) != 1 || string(m.Resources[0].Value) != "mine again" {
			t.Errorf("%v %v", m, err)
		}
	})
	if log := o.log.String(); !strings.Contains(log, fmt.Sprintf("%q", names[0])) && !strings.Contains(log, "name="+names[0]) {
		t.Errorf("the attempt is not in the log:\n%s", log)
	}
	for _, l := range o.engine.Statuses(distribute.Filter{Name: secret}) {
		if l.Sent != "" {
			t.Errorf("sent: %+v", l)
		}
	}
}
