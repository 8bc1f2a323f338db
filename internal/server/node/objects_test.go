package node_test

import (
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/limit"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const webID = "spiffe://example.org/ns/default/sa/web"

func put(entry, id, key, value string) *nodev1.PutObjectRequest {
	return &nodev1.PutObjectRequest{TrustDomain: "example.org", Entry: entry, SpiffeId: id, Key: key, Value: []byte(value)}
}

func TestTwoNodesShareTheObjectsOfAnIdentityThatBothHold(t *testing.T) {
	p := nodetest.New(t)
	a, _ := attested(t, p, "web-1")
	b, _ := attested(t, p, "web-2")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("web-2", entry("web"))
	first, second := nodev1.NewNodeClient(a), nodev1.NewNodeClient(b)
	stored, err := first.PutObject(t.Context(), put("default/web", webID, "acme/k", "sealed"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := second.GetObject(t.Context(), &nodev1.GetObjectRequest{TrustDomain: "example.org", Entry: "default/web", SpiffeId: webID, Key: "acme/k"})
	if err != nil || string(got.Object.Value) != "sealed" || got.Object.Revision != stored.Revision {
		t.Fatal(got, err)
	}
	stale := put("default/web", webID, "acme/k", "other")
	stale.IfRevision = new(int64)
	if _, err := second.PutObject(t.Context(), stale); status.Code(err) != codes.AlreadyExists {
		t.Error(err)
	}
	list, err := second.ListObjects(t.Context(), &nodev1.ListObjectsRequest{TrustDomain: "example.org", Entry: "default/web", SpiffeId: webID, Prefix: "acme"})
	if err != nil || len(list.Objects) != 1 || list.Objects[0].Value != nil || list.Objects[0].Size != 6 {
		t.Error(list, err)
	}
	gone := &nodev1.DeleteObjectRequest{TrustDomain: "example.org", Entry: "default/web", SpiffeId: webID, Key: "acme/k", IfRevision: &stored.Revision}
	if _, err := second.DeleteObject(t.Context(), gone); err != nil {
		t.Error(err)
	}
	if _, err := first.DeleteObject(t.Context(), gone); status.Code(err) != codes.AlreadyExists {
		t.Error(err)
	}
}

func TestObjectsAreRefused(t *testing.T) {
	p := nodetest.New(t, func(params *node.Params) {
		params.Limits.ObjectBytesPerNode = limit.Rate{PerSecond: 1, Burst: 1000}
	})
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	blocked := entry("blocked")
	blocked.Blocked = true
	p.SetEntry("web-1", blocked)
	for name, row := range map[string]struct {
		request *nodev1.PutObjectRequest
		code    codes.Code
	}{
		"of an entry that another node has":         {put("default/db", "spiffe://example.org/ns/default/sa/db", "k", "v"), codes.PermissionDenied},
		"of an identity that the entry gives not":   {put("default/web", "spiffe://example.org/ns/default/sa/db", "k", "v"), codes.PermissionDenied},
		"of an identity that was revoked":           {put("default/blocked", "spiffe://example.org/ns/default/sa/blocked", "k", "v"), codes.PermissionDenied},
		"of the control plane's own identity":       {put("default/web", "spiffe://example.org/legation/server", "k", "v"), codes.PermissionDenied},
		"with a key that leads elsewhere":           {put("default/web", webID, "../db/k", "v"), codes.InvalidArgument},
		"beyond what a node may write in some time": {put("default/web", webID, "k", string(make([]byte, 900))), codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := nodev1.NewNodeClient(conn).PutObject(t.Context(), row.request); status.Code(err) != row.code {
				t.Fatal(err)
			}
			if row.code == codes.OK { // the next one is too much
				if _, err := nodev1.NewNodeClient(conn).PutObject(t.Context(), row.request); status.Code(err) != codes.ResourceExhausted {
					t.Error(err)
				}
			}
		})
	}
	t.Run("of another trust domain", func(t *testing.T) {
		r := put("default/web", webID, "k", "v")
		r.TrustDomain = "evil.org"
		if _, err := nodev1.NewNodeClient(conn).PutObject(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
}
