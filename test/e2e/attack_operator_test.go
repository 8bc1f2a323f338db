package e2e

import (
	"context"
	"crypto/tls"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/test/e2e/world"
)

// An operator whose certificate is taken away keeps no connection: what it
// proved at the handshake ended with it.
func TestARevokedOperatorIsOutOnAnOpenConnection(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	config := w.Write("cp.yaml", "roles:\n- {role: admin, namespace: \"*\", subjects: [\""+world.ID("me")+"\"]}\n", 0o600)
	w.Server = w.NewServer("cp", "--config", config)
	w.Server.Start()
	svid, cert := me(t, w, w.Join("n1"))

	conn, err := grpc.NewClient("passthrough:///"+w.Server.Listen, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	list := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
		defer cancel()
		_, err := adminv1.NewAdminClient(conn).ListNodes(ctx, &adminv1.ListNodesRequest{TrustDomain: world.TrustDomain})
		return err
	}
	if err := list(); err != nil {
		t.Fatalf("the operator is let in before: %v", err)
	}
	w.JSON(nil, "revoke", "--serial", svid.Certificates[0].SerialNumber.Text(16))
	// Refused, or the connection was ended before the call and no other begun.
	if err := list(); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unavailable {
		t.Errorf("on the open connection, after: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
	defer cancel()
	if !conn.WaitForStateChange(ctx, connectivity.Ready) {
		t.Error("the connection stays open")
	}
	if err := list(); err == nil {
		t.Error("a new connection is let in")
	}
}
