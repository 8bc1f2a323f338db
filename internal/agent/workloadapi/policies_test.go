package workloadapi

import (
	"maps"
	"strings"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	sdk "github.com/legation-io/legation/sdk/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (a *agent) policies() workloadv1.PoliciesClient {
	conn, err := sdk.Dial("unix://" + a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return workloadv1.NewPoliciesClient(conn)
}

func (a *agent) declare(name string, p *nodev1.Policy) {
	a.change(func(v *upstream.View) {
		if v.Policies = maps.Clone(v.Policies); v.Policies == nil {
			v.Policies = map[string]*nodev1.Policy{}
		}
		if p == nil {
			delete(v.Policies, name)
			return
		}
		p.Name = name
		p.Namespace, _, _ = strings.Cut(name, "/")
		p.Modules = map[string]string{"p.rego": "package legation"}
		v.Policies[name] = p
	})
}

func names(set *workloadv1.PolicySet) string {
	var all []string
	for _, p := range set.GetPolicies() {
		all = append(all, p.GetName())
	}
	return strings.Join(all, " ")
}

func TestPoliciesArePushedToWhomTheyBind(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	stream, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want string) *workloadv1.PolicySet {
		t.Helper()
		set, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := names(set); got != want {
			t.Errorf("the set is %q, want %q", got, want)
		}
		return set
	}
	next("") // none is a set, too: everything is denied
	a.declare("default/all", &nodev1.Policy{Version: 3, RegoVersion: 1, Data: []byte(`{}`), Query: "data.a.b"})
	set := next("default/all")
	if p := set.Policies[0]; p.Version != 3 || p.RegoVersion != 1 || string(p.Data) != "{}" || p.Query != "data.a.b" || p.Modules["p.rego"] == "" {
		t.Errorf("%v", p)
	}
	// What binds others changes nothing for this one.
	a.declare("other/all", &nodev1.Policy{Version: 4})
	a.declare("other/web", &nodev1.Policy{Version: 4, Subjects: []string{"spiffe://example.org/ns/default/sa/web", "spiffe://example.org/**"}})
	a.declare("default/api", &nodev1.Policy{Version: 4, Subjects: []string{"spiffe://example.org/ns/default/sa/api"}})
	a.declare("legation-system/api", &nodev1.Policy{Version: 4, Subjects: []string{"spiffe://example.org/ns/default/sa/api"}})
	a.declare("default/web", &nodev1.Policy{Version: 5, Subjects: []string{"spiffe://example.org/ns/default/sa/*"}})
	next("default/all default/web")
	a.declare("legation-system/mesh", &nodev1.Policy{Version: 6})
	next("default/all default/web legation-system/mesh")
	a.declare("default/all", &nodev1.Policy{Version: 7})
	if set := next("default/all default/web legation-system/mesh"); set.Policies[0].Version != 7 {
		t.Errorf("%v", set.Policies[0])
	}
	a.declare("default/all", nil)
	next("default/web legation-system/mesh")
	a.change(func(v *upstream.View) { v.Entries = map[string]*nodev1.Entry{} })
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of an identity that is gone: %v", err)
	}
}

// An entry that is for other processes from now on is nobody's who watched.
func TestPoliciesEndWithTheRightToTheIdentity(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	stream, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	a.change(func(v *upstream.View) {
		e := webEntry()
		e.Selectors = []string{"unix:uid:4294967294"}
		v.Entries[e.Name] = e
	})
	a.declare("default/all", &nodev1.Policy{Version: 3})
	if set, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("told %q, %v", names(set), err)
	}
}

func TestPoliciesAreNotToldBeforeTheyAreKnown(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	a.change(func(v *upstream.View) { v.Synced = false })
	stream, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	a.declare("default/all", &nodev1.Policy{Version: 3})
	a.change(func(v *upstream.View) { v.Synced = true })
	if set, err := stream.Recv(); err != nil || names(set) != "default/all" {
		t.Errorf("first set %v, error %v; an empty one would deny", set, err)
	}
}

func TestPoliciesAreForCallersWithTheIdentity(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	stream, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{SpiffeId: "spiffe://example.org/ns/default/sa/other"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's policies: %v", err)
	}
	nobody := serve(t, Limits{})
	if stream, err = nobody.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{}); err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a caller without an entry gets %v", err)
	}
}

// A program that watches large policies many times and never reads keeps no
// more than a bounded part of them in the agent's memory.
func TestWhatIsSentToThoseWhoDoNotReadIsBounded(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	a.declare("default/large", &nodev1.Policy{Version: 1, RegoVersion: 1, Data: make([]byte, maxEntryPolicyBytes/5*2)})
	for range 2 { // who never reads
		if _, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "one more is refused", func() bool {
		stream, err := a.policies().Watch(secure(t), &workloadv1.WatchPoliciesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "those who watch them")
	})
	var b policyBytes
	for n := range 6 {
		if got := b.swap("a", 0, maxEntryPolicyBytes/4); got != (n < 4) {
			t.Errorf("watch %d: %v", n+1, got)
		}
	}
	if !b.swap("b", 0, 10) || !b.swap("a", maxEntryPolicyBytes/4, 0) || !b.swap("a", 0, maxEntryPolicyBytes/4) || b.swap("a", 10, 20) {
		t.Error("what was given back is not to be had, or another entry's is")
	}
	for range 4 {
		b.swap("a", maxEntryPolicyBytes/4, 0)
	}
	if b.swap("b", 10, 0); b.all != 0 || len(b.entry) != 0 {
		t.Errorf("%d bytes of %v are left", b.all, b.entry)
	}
}
