package workloadapi

import (
	"maps"
	"slices"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	sdk "github.com/legation-io/legation/sdk/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (a *agent) revocations() workloadv1.RevocationsClient {
	conn, err := sdk.Dial("unix://" + a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return workloadv1.NewRevocationsClient(conn)
}

func (a *agent) revoke(id string, r *nodev1.Revocation) {
	a.change(func(v *upstream.View) {
		v.Revocations = maps.Clone(v.Revocations)
		if v.Revocations == nil {
			v.Revocations = map[string]*nodev1.Revocation{}
		}
		v.Revocations[id] = r
		if r == nil {
			delete(v.Revocations, id)
		}
	})
}

func TestRevocationsArePushedWhole(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	stream, err := a.revocations().Watch(secure(t), &workloadv1.WatchRevocationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() []*workloadv1.Revocation {
		t.Helper()
		set, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return set.Revocations
	}
	if first := next(); len(first) != 0 {
		t.Errorf("the first set is %v, nothing is revoked", first)
	}
	const web = "spiffe://example.org/ns/default/sa/web"
	a.revoke("r1", &nodev1.Revocation{Id: "r1", SpiffeId: web, Serials: []string{"6f02"}, Reason: "lost", RevokedAtUnixNano: 7, BlocksIssuance: true})
	if got := next(); len(got) != 1 || got[0].SpiffeId != web || !slices.Equal(got[0].Serials, []string{"6f02"}) || got[0].Reason != "lost" || got[0].RevokedAtUnixNano != 7 {
		t.Errorf("the set is %v", got)
	}
	// A node's names are nobody's business, its serials are.
	a.revoke("r0", &nodev1.Revocation{Id: "r0", Node: "n1", Serials: []string{"a", "b"}, RevokedAtUnixNano: 3, BlocksIssuance: true})
	if got := next(); len(got) != 2 || got[0].SpiffeId != "" || !slices.Equal(got[0].Serials, []string{"a", "b"}) || got[1].SpiffeId != web {
		t.Errorf("the set is %v, want the older first", got)
	}
	// Lifted: the identity is good again, the old certificate is not.
	a.revoke("r1", &nodev1.Revocation{Id: "r1", SpiffeId: web, Serials: []string{"6f02"}, Reason: "lost", RevokedAtUnixNano: 7})
	if got := next(); len(got) != 2 || got[1].SpiffeId != "" || !slices.Equal(got[1].Serials, []string{"6f02"}) {
		t.Errorf("the set after the lift is %v", got)
	}
	// What changes something else is not a new set; the next one is.
	a.change(func(v *upstream.View) { v.CRLs["default"] = a.ca.crl(t, 2) })
	a.revoke("r1", nil)
	if got := next(); len(got) != 1 {
		t.Errorf("the set is %v", got)
	}
}

func TestRevocationsAreNotToldBeforeTheyAreKnown(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	a.change(func(v *upstream.View) { v.Synced = false })
	stream, err := a.revocations().Watch(secure(t), &workloadv1.WatchRevocationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	a.revoke("r1", &nodev1.Revocation{Id: "r1", Serials: []string{"1"}})
	a.change(func(v *upstream.View) { v.Synced = true })
	if set, err := stream.Recv(); err != nil || len(set.Revocations) != 1 {
		t.Errorf("first set %v, error %v; an empty one would acquit", set, err)
	}
}

func TestRevocationsAreForCallersWithAnIdentity(t *testing.T) {
	a := serve(t, Limits{})
	stream, err := a.revocations().Watch(secure(t), &workloadv1.WatchRevocationsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a caller without an entry gets %v", err)
	}
}
