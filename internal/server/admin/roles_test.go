package admin

import (
	"context"
	"strings"
	"testing"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/callers"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func named(name, space string) string {
	return strings.NewReplacer("NAME", name, "SPACE", space).Replace(identity)
}

// A role that is bound to namespaces passes the gate of each RPC whose request
// can name one; what it touches is then held against it here.
func TestA12ARoleInANamespaceReachesNoOther(t *testing.T) {
	o := newOffice(t)
	if _, err := o.Apply(owner(t), &adminv1.ApplyRequest{Documents: docs(named("web", "retail") + "---\n" + named("web", "bank"))}); err != nil {
		t.Fatal(err)
	}
	retail, bank := "spiffe://example.org/ns/retail/sa/web", "spiffe://example.org/ns/bank/sa/web"
	ours, theirs := o.issue(ca.ProfileWorkload, retail, "retail", "node-1"), o.issue(ca.ProfileWorkload, bank, "bank", "node-1")
	shared := "spiffe://example.org/ns/shared/sa/web"
	o.issue(ca.ProfileWorkload, shared, "retail", "node-1")
	o.issue(ca.ProfileWorkload, shared, "bank", "node-1")
	agent, err := node.ID(domain, "node-1")
	must(t, err)
	agents := o.issue(ca.ProfileAgent, agent.String(), "system", "node-1")

	calls := []struct {
		name string
		role callers.Role
		call func(context.Context) error
		ok   bool
	}{
		{"applies into its own namespace", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Apply(ctx, &adminv1.ApplyRequest{Documents: docs(named("db", "retail"))})
			return err
		}, true},
		{"applies nothing when one of two objects is in another namespace", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Apply(ctx, &adminv1.ApplyRequest{Documents: docs(named("more", "retail") + "---\n" + named("more", "bank"))})
			return err
		}, false},
		{"applies nothing that only its request calls its namespace", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Apply(ctx, &adminv1.ApplyRequest{Namespace: "retail", Documents: docs(named("more", "bank"))})
			return err
		}, false},
		{"gets its own", callers.Viewer, func(ctx context.Context) error {
			_, err := o.Get(ctx, &adminv1.GetRequest{Kind: "all", Namespace: "retail"})
			return err
		}, true},
		{"does not get another's", callers.Viewer, func(ctx context.Context) error {
			_, err := o.Get(ctx, &adminv1.GetRequest{Kind: "all", Namespace: "bank"})
			return err
		}, false},
		{"does not get all", callers.Viewer, func(ctx context.Context) error {
			_, err := o.Get(ctx, &adminv1.GetRequest{Kind: "all"})
			return err
		}, false},
		{"lists its own certificates", callers.Viewer, func(ctx context.Context) error {
			_, err := o.ListCertificates(ctx, &adminv1.ListCertificatesRequest{Namespace: "retail"})
			return err
		}, true},
		{"does not list all certificates", callers.Viewer, func(ctx context.Context) error {
			_, err := o.ListCertificates(ctx, &adminv1.ListCertificatesRequest{})
			return err
		}, false},
		{"does not list another's by serial", callers.Viewer, func(ctx context.Context) error {
			_, err := o.ListCertificates(ctx, &adminv1.ListCertificatesRequest{Serial: theirs})
			return err
		}, false},
		{"does not delete another's", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Delete(ctx, &adminv1.DeleteRequest{Kind: "WorkloadIdentity", Namespace: "bank", Names: []string{"web"}})
			return err
		}, false},
		{"does not delete by documents, which name their own", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Delete(ctx, &adminv1.DeleteRequest{Namespace: "retail", Documents: docs(named("web", "bank"))})
			return err
		}, false},
		{"deletes its own", callers.RoleOperator, func(ctx context.Context) error {
			_, err := o.Delete(ctx, &adminv1.DeleteRequest{Kind: "WorkloadIdentity", Namespace: "retail", Names: []string{"db"}})
			return err
		}, true},
		{"makes no join token", callers.Security, func(ctx context.Context) error {
			_, err := o.CreateToken(ctx, &adminv1.CreateTokenRequest{Node: "node-9", Namespace: "retail"})
			return err
		}, false},
		{"revokes no node", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{Node: "node-1"}) }, false},
		{"revokes no other namespace's certificate", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{Serial: theirs}) }, false},
		{"revokes no agent's certificate", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{Serial: agents}) }, false},
		{"revokes no other namespace's identity", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{SpiffeId: bank}) }, false},
		{"revokes no identity that another namespace has too", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{SpiffeId: shared}) }, false},
		{"revokes no identity that nobody declared", callers.Security, func(ctx context.Context) error {
			return o.takeAway(ctx, &adminv1.RevokeRequest{SpiffeId: "spiffe://example.org/ns/nowhere/sa/web"})
		}, false},
		{"revokes its own certificate", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{Serial: ours}) }, true},
		{"revokes its own identity", callers.Security, func(ctx context.Context) error { return o.takeAway(ctx, &adminv1.RevokeRequest{SpiffeId: retail}) }, true},
	}
	for _, tt := range calls {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call(operator(t, tt.role, "retail"))
			if tt.ok && err != nil || !tt.ok && status.Code(err) != codes.PermissionDenied {
				t.Errorf("answered %v, allowed should be %t", err, tt.ok)
			}
		})
	}
	state, _ := o.p.Authority.State()
	for _, s := range []string{theirs, agents} {
		if _, revoked := state.Revoked(s); revoked {
			t.Errorf("%s was refused and is revoked all the same", s)
		}
	}
	if objects, err := o.p.Catalog.Get("WorkloadIdentity", "", nil); err != nil || len(objects) != 2 {
		t.Errorf("declared are %d objects, want the first two (%v)", len(objects), err)
	}
}

// takeAway is Revoke without a stream.
func (o *office) takeAway(ctx context.Context, req *adminv1.RevokeRequest) error {
	req.WaitMillis = 1
	_, err := answer(ctx, o.Server, "revoke", struct{}{}, o.revoke(ctx, req, func(*adminv1.RevokeProgress) error { return nil }))
	return err
}
