package workloadapi

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// keeper is a control plane that notes in whose name it is asked.
type keeper struct {
	mu    sync.Mutex // guards asked while several ask
	asked []string
	fail  error
}

func (k *keeper) note(verb, entry, id, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, strings.Join([]string{verb, entry, id, key}, " "))
	return k.fail
}

func (k *keeper) GetObject(_ context.Context, r *nodev1.GetObjectRequest) (*nodev1.GetObjectResponse, error) {
	return &nodev1.GetObjectResponse{Object: &nodev1.StoredObject{Key: r.Key, Value: []byte("v"), Size: 1, Revision: 7, ModifiedUnixNano: 8}}, k.note("get", r.Entry, r.SpiffeId, r.Key)
}

func (k *keeper) PutObject(_ context.Context, r *nodev1.PutObjectRequest) (*nodev1.PutObjectResponse, error) {
	return &nodev1.PutObjectResponse{Revision: r.GetIfRevision() + 1}, k.note("put", r.Entry, r.SpiffeId, r.Key)
}

func (k *keeper) DeleteObject(_ context.Context, r *nodev1.DeleteObjectRequest) (*nodev1.DeleteObjectResponse, error) {
	return nil, k.note("delete", r.Entry, r.SpiffeId, r.Key)
}

func (k *keeper) ListObjects(_ context.Context, r *nodev1.ListObjectsRequest) (*nodev1.ListObjectsResponse, error) {
	return &nodev1.ListObjectsResponse{Objects: []*nodev1.StoredObject{{Key: "a", Size: 2}}}, k.note("list", r.Entry, r.SpiffeId, r.Prefix)
}

func (a *agent) objects() workloadv1.ObjectsClient {
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return workloadv1.NewObjectsClient(conn)
}

func TestObjectsAreAskedForInTheCallersNameAlone(t *testing.T) {
	k := &keeper{}
	a := serve(t, Limits{}, webEntry())
	a.keeper = k
	ctx, c := secure(t), a.objects()
	const web = "spiffe://example.org/ns/default/sa/web"
	got, err := c.Get(ctx, &workloadv1.GetObjectRequest{Key: "k"})
	if err != nil || string(got.Value) != "v" || got.Revision != 7 || got.ModifiedUnixNano != 8 {
		t.Fatal(got, err)
	}
	seven := int64(7)
	if res, err := c.Put(ctx, &workloadv1.PutObjectRequest{SpiffeId: web, Key: "k", IfRevision: &seven}); err != nil || res.Revision != 8 {
		t.Fatal(res, err)
	}
	if list, err := c.List(ctx, &workloadv1.ListObjectsRequest{Prefix: "p"}); err != nil || len(list.Objects) != 1 {
		t.Fatal(list, err)
	}
	if _, err := c.Delete(ctx, &workloadv1.DeleteObjectRequest{Key: "k"}); err != nil {
		t.Fatal(err)
	}
	want := "get default/web " + web + " k|put default/web " + web + " k|list default/web " + web + " p|delete default/web " + web + " k"
	if got := strings.Join(k.asked, "|"); got != want {
		t.Errorf("asked %q", got)
	}
	k.asked = nil
	t.Run("another identity is refused here already", func(t *testing.T) {
		if _, err := c.Get(ctx, &workloadv1.GetObjectRequest{SpiffeId: "spiffe://example.org/ns/default/sa/db", Key: "k"}); status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
	})
	t.Run("without the security header nothing is asked", func(t *testing.T) {
		if _, err := c.Get(t.Context(), &workloadv1.GetObjectRequest{Key: "k"}); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	})
	if k.asked != nil {
		t.Errorf("asked %q", k.asked)
	}
	t.Run("a condition that does not hold is FailedPrecondition", func(t *testing.T) {
		k.fail = fault.New(fault.Conflict, "it is at revision 9")
		if _, err := c.Put(ctx, &workloadv1.PutObjectRequest{Key: "k"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "revision 9") {
			t.Error(err)
		}
	})
	t.Run("a quota is ResourceExhausted", func(t *testing.T) {
		k.fail = fault.New(fault.Limited, "1,000 objects")
		if _, err := c.Put(ctx, &workloadv1.PutObjectRequest{Key: "k"}); status.Code(err) != codes.ResourceExhausted {
			t.Error(err)
		}
	})
}

func TestAProcessWithoutAnIdentityHasNoObjects(t *testing.T) {
	k := &keeper{}
	a := serve(t, Limits{})
	a.keeper = k
	if _, err := a.objects().List(secure(t), &workloadv1.ListObjectsRequest{}); status.Code(err) != codes.PermissionDenied || k.asked != nil {
		t.Error(err, k.asked)
	}
}

// What the control plane lets a node store and ask is not one program's.
func TestOneEntryCannotTakeTheObjectRateOfTheNode(t *testing.T) {
	k := &keeper{}
	a := serve(t, Limits{}, webEntry())
	a.keeper = k
	ctx, c := secure(t), a.objects()
	if _, err := c.Put(ctx, &workloadv1.PutObjectRequest{Key: "k", Value: make([]byte, maxObject+1)}); status.Code(err) != codes.InvalidArgument || len(k.asked) != 0 {
		t.Errorf("too large a value went to the control plane %v: %v", k.asked, err)
	}
	// However slowly this machine asks: what was let through is at most what the
	// rate allows for the time that it took.
	allowed := func(r limit.Rate, since time.Time) float64 {
		return float64(r.Burst) + r.PerSecond*time.Since(since).Seconds()
	}
	full := &workloadv1.PutObjectRequest{Key: "k", Value: make([]byte, maxObject)}
	begun := time.Now()
	for range 2 * objectBytes.Burst / maxObject {
		c.Put(ctx, full)
	}
	if n := len(k.asked); float64(n*maxObject) > allowed(objectBytes, begun) {
		t.Errorf("%d values of %d bytes went to the control plane in %s", n, maxObject, time.Since(begun))
	}
	var asking sync.WaitGroup
	for range 10 { // so many that a slow machine, too, asks faster than the rate
		asking.Go(func() {
			for range objectCalls.Burst / 5 {
				c.Get(ctx, &workloadv1.GetObjectRequest{Key: "k"})
			}
		})
	}
	asking.Wait()
	if n := len(k.asked); float64(n) > allowed(objectCalls, begun) {
		t.Errorf("%d calls went to the control plane in %s", n, time.Since(begun))
	}
}
