package declared_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/policy"
	"github.com/legation-io/legation/sdk/policy/declared"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a socket that pushes what it is told.
type agent struct {
	workloadv1.UnimplementedPoliciesServer
	mu      sync.Mutex
	set     *workloadv1.PolicySet
	err     error
	changed chan struct{}
}

func (a *agent) put(set *workloadv1.PolicySet, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.set, a.err = set, err
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) Watch(r *workloadv1.WatchPoliciesRequest, stream grpc.ServerStreamingServer[workloadv1.PolicySet]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		a.mu.Lock()
		set, err, changed := a.set, a.err, a.changed
		a.mu.Unlock()
		if err != nil {
			return err
		}
		if set != nil {
			if err := stream.Send(set); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func listen(t testing.TB, socket string, a workloadv1.PoliciesServer) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	if a != nil {
		workloadv1.RegisterPoliciesServer(s, a)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	return func() { s.Stop(); <-done }
}

func one(name string, version uint64, rules string) *workloadv1.Policy {
	return &workloadv1.Policy{Name: name, Version: version, RegoVersion: 1, Modules: map[string]string{"p.rego": "package legation\n" + rules}}
}

func sets(p ...*workloadv1.Policy) *workloadv1.PolicySet { return &workloadv1.PolicySet{Policies: p} }

var question = policy.Input{Identity: spiffeid.RequireFromString("spiffe://a.example/ns/x/sa/y"), Operation: "predict",
	Request: policy.Request{Method: "GET", Path: "/"}}

func eventually(t testing.TB, e *policy.Engine, want policy.Cause) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		_, changed := e.Loaded()
		d := e.Decide(context.Background(), &question)
		if d.Cause == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s (%s); want %s", d.Cause, d.Detail, want)
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // what time decided, another time may decide otherwise
		}
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestDeclaredPoliciesAreFollowed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	a := &agent{changed: make(chan struct{})}
	stop := listen(t, socket, a)
	e := policy.NewEngine(policy.Config{Logger: quiet()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- declared.Source{Addr: "unix://" + socket, Logger: quiet()}.Run(ctx, e) }()
	eventually(t, e, policy.CauseNoPolicy)
	a.put(sets(one("x/a", 1, "allow := true")), nil)
	eventually(t, e, policy.CauseAllowed)
	a.put(sets(one("x/a", 2, "allow := false")), nil)
	eventually(t, e, policy.CauseDenied)
	a.put(sets(one("x/a", 3, "allow := true"), one("x/b", 3, `allow if input.operation == "other"`)), nil)
	eventually(t, e, policy.CauseUndefined)
	a.put(sets(one("x/a", 4, "allow := true")), nil)
	eventually(t, e, policy.CauseAllowed)

	a.put(sets(one("x/a", 5, "allow := if")), nil) // does not load: the one before stays
	a.put(nil, status.Error(codes.PermissionDenied, "no identity"))
	stop() // the agent is away
	if d := e.Decide(ctx, &question); !d.Allowed || d.Policies[0].Version != "4" {
		t.Errorf("%+v", d)
	}
	a.put(sets(), nil) // and back: the last policy was deleted
	defer listen(t, socket, a)()
	eventually(t, e, policy.CauseNoPolicy)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatTryingAgainCannotMendEndsTheSource(t *testing.T) {
	e := policy.NewEngine(policy.Config{Logger: quiet()})
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for _, addr := range []string{"", "/run/agent.sock", "http://x"} {
		if err := declared.FromLegation(t.Context(), addr, e); err == nil {
			t.Errorf("address %q was taken", addr)
		}
	}
	socket := filepath.Join(t.TempDir(), "other.sock")
	defer listen(t, socket, nil)() // a Workload API of somebody else
	if err := declared.FromLegation(t.Context(), "unix://"+socket, e); status.Code(err) != codes.Unimplemented {
		t.Errorf("%v", err)
	}
}

// A program beside an agent needs the address alone.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	engine := policy.NewEngine(policy.Config{Logger: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() {
		done <- declared.Source{Addr: "unix:///run/no-agent-here.sock", Logger: slog.New(slog.DiscardHandler)}.Run(ctx, engine)
	}()
	// handler := policy.Handler(mux, engine, routes): it denies until policies come.
	question := policy.Input{Identity: spiffeid.RequireFromString("spiffe://prod.example/ns/shop/sa/web"), Operation: "predict"}
	fmt.Println(engine.Decide(ctx, &question).Cause)
	cancel()
	fmt.Println(<-done)
	// Output:
	// no_policy
	// <nil>
}
