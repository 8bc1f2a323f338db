package objectstore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/legation-io/legation/sdk/acmecert/internal/storagetest"
	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keeper is the Objects service in memory, with faults.
type keeper struct {
	workloadv1.UnimplementedObjectsServer
	mu       sync.Mutex
	objects  map[string]*workloadv1.Object
	revision int64
	// lose answers Unavailable after a Put was done, this many times; hang does
	// not answer before the caller gives up.
	lose, hang int
}

func (k *keeper) Get(_ context.Context, r *workloadv1.GetObjectRequest) (*workloadv1.Object, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o := k.objects[r.Key]; o != nil {
		return o, nil
	}
	return nil, status.Error(codes.NotFound, "nothing there")
}

func (k *keeper) checkLocked(key string, want *int64) error {
	have := k.objects[key].GetRevision()
	if want != nil && *want != have {
		return status.Errorf(codes.FailedPrecondition, "%s is at %d", key, have)
	}
	return nil
}

func (k *keeper) Put(ctx context.Context, r *workloadv1.PutObjectRequest) (*workloadv1.PutObjectResponse, error) {
	k.mu.Lock()
	if k.hang > 0 {
		k.hang--
		k.mu.Unlock()
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	defer k.mu.Unlock()
	if err := k.checkLocked(r.Key, r.IfRevision); err != nil {
		return nil, err
	}
	k.revision++
	k.objects[r.Key] = &workloadv1.Object{Key: r.Key, Value: r.Value, Revision: k.revision, Size: uint64(len(r.Value)), ModifiedUnixNano: time.Now().UnixNano()}
	if k.lose > 0 {
		k.lose--
		return nil, status.Error(codes.Unavailable, "the connection broke")
	}
	return &workloadv1.PutObjectResponse{Revision: k.revision}, nil
}

func (k *keeper) Delete(_ context.Context, r *workloadv1.DeleteObjectRequest) (*workloadv1.DeleteObjectResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.objects[r.Key] == nil {
		return nil, status.Error(codes.NotFound, "nothing there")
	}
	if err := k.checkLocked(r.Key, r.IfRevision); err != nil {
		return nil, err
	}
	delete(k.objects, r.Key)
	return &workloadv1.DeleteObjectResponse{}, nil
}

func (k *keeper) List(_ context.Context, r *workloadv1.ListObjectsRequest) (*workloadv1.ListObjectsResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	res := &workloadv1.ListObjectsResponse{}
	for key, o := range k.objects {
		if strings.HasPrefix(key, r.Prefix) {
			res.Objects = append(res.Objects, &workloadv1.Object{Key: key, Size: o.Size, Revision: o.Revision, ModifiedUnixNano: o.ModifiedUnixNano})
		}
	}
	sort.Slice(res.Objects, func(i, j int) bool { return res.Objects[i].Key < res.Objects[j].Key })
	return res, nil
}

// Invoke implements grpc.ClientConnInterface: an agent without a socket, so that
// a test's clock can be its own.
func (k *keeper) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	var res any
	var err error
	switch r := args.(type) {
	case *workloadv1.GetObjectRequest:
		res, err = k.Get(ctx, r)
	case *workloadv1.PutObjectRequest:
		res, err = k.Put(ctx, r)
	case *workloadv1.DeleteObjectRequest:
		res, err = k.Delete(ctx, r)
	case *workloadv1.ListObjectsRequest:
		res, err = k.List(ctx, r)
	}
	if err == nil {
		proto.Merge(reply.(proto.Message), res.(proto.Message))
	}
	return err
}

func (k *keeper) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func fixture() (*keeper, grpc.ClientConnInterface) {
	k := &keeper{objects: map[string]*workloadv1.Object{}}
	return k, k
}

var key = []byte("0123456789abcdef0123456789abcdef")

func open(t testing.TB, conn grpc.ClientConnInterface, change func(*Config)) *Storage {
	t.Helper()
	c := Config{Conn: conn, Key: key, LockTTL: time.Second, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestItIsAStorage(t *testing.T) {
	t.Parallel()
	_, conn := fixture()
	// Longer than all of this process is ever held up: who holds a lock could
	// not renew it, and who waits would take it over.
	storagetest.Run(t, open(t, conn, func(c *Config) { c.LockTTL = time.Minute }))
}

func TestWhatIsStoredIsSealedUnderItsName(t *testing.T) {
	k, conn := fixture()
	s := open(t, conn, nil)
	secret := []byte("-----BEGIN EC PRIVATE KEY-----")
	for _, name := range []string{"a", "b"} {
		if err := s.Store(t.Context(), name, append(secret, name...)); err != nil {
			t.Fatal(err)
		}
	}
	for name, o := range k.objects {
		if bytes.Contains(o.Value, secret[:8]) {
			t.Errorf("%s lies in clear", name)
		}
	}
	t.Run("the control plane cannot put one in another's place", func(t *testing.T) {
		k.objects["acmecert/a"].Value, k.objects["acmecert/b"].Value = k.objects["acmecert/b"].Value, k.objects["acmecert/a"].Value
		if _, err := s.Load(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("nor make one of its own", func(t *testing.T) {
		k.objects["acmecert/a"].Value = []byte("made up")
		if _, err := s.Load(t.Context(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("another key opens nothing, an old one still does", func(t *testing.T) {
		if err := s.Store(t.Context(), "c", secret); err != nil {
			t.Fatal(err)
		}
		other := bytes.Repeat([]byte("xy"), 16)
		if _, err := open(t, conn, func(c *Config) { c.Key = other }).Load(t.Context(), "c"); err == nil {
			t.Error("another key opened it")
		}
		if got, err := open(t, conn, func(c *Config) { c.Key, c.OldKeys = other, [][]byte{key} }).Load(t.Context(), "c"); err != nil || !bytes.Equal(got, secret) {
			t.Error(err)
		}
	})
}

func TestAConfigurationIsRefused(t *testing.T) {
	_, conn := fixture()
	for name, change := range map[string]func(*Config){
		"without a sealing key":       func(c *Config) { c.Key = nil },
		"with two":                    func(c *Config) { c.KeyFile = "/k" },
		"with a short one":            func(c *Config) { c.Key = key[:16] },
		"with one of a single byte":   func(c *Config) { c.Key = make([]byte, 32) },
		"with a prefix leading away":  func(c *Config) { c.Prefix = "../x" },
		"with locks too short-lived":  func(c *Config) { c.LockTTL = time.Millisecond },
		"with a missing sealing file": func(c *Config) { c.Key, c.KeyFile = nil, "/does/not/exist" },
	} {
		c := Config{Conn: conn, Key: key}
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("it was taken %s", name)
		}
	}
}

func TestAKilledHoldersLockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, conn := fixture()
		dead, alive := open(t, conn, nil), open(t, conn, nil)
		if err := dead.Lock(t.Context(), "n"); err != nil {
			t.Fatal(err)
		}
		// Killed: nothing renews, nothing is given back.
		l := dead.held["n"]
		l.stop()
		<-l.done
		begun := time.Now()
		if err := alive.Lock(t.Context(), "n"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < time.Second || took > 1200*time.Millisecond {
			t.Errorf("it took %s to take over, LockTTL is 1 s", took)
		}
		if err := dead.Unlock(t.Context(), "n"); err == nil {
			t.Error("the dead one gave back another's lock")
		}
		if len(k.objects) != 1 {
			t.Errorf("%d locks are there", len(k.objects))
		}
		if err := alive.Unlock(t.Context(), "n"); err != nil {
			t.Error(err)
		}
	})
}

func TestALivingHolderKeepsItsLock(t *testing.T) {
	for name, fault := range map[string]func(*keeper){
		"through all renewals":              func(*keeper) {},
		"when a renewal's answer is lost":   func(k *keeper) { k.lose = 1 },
		"when a renewal gets no answer":     func(k *keeper) { k.hang = 1 },
		"when both happen, to two in a row": func(k *keeper) { k.lose, k.hang = 1, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, conn := fixture()
				long := func(c *Config) { c.LockTTL = 15 * time.Second }
				a, b := open(t, conn, long), open(t, conn, long)
				if err := a.Lock(t.Context(), "n"); err != nil {
					t.Fatal(err)
				}
				k.mu.Lock()
				fault(k)
				k.mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := b.Lock(ctx, "n"); err == nil {
					t.Error("it was taken over")
				}
				if err := a.Unlock(t.Context(), "n"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestALockWhoseAnswerWasLostIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, conn := fixture()
		s := open(t, conn, func(c *Config) { c.LockTTL = 10 * time.Second })
		k.lose = 1
		begun := time.Now()
		if err := s.Lock(t.Context(), "n"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("its own lock held it up for %s", took)
		}
		if err := s.Unlock(t.Context(), "n"); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseGivesLocksBack(t *testing.T) {
	k, conn := fixture()
	s := open(t, conn, nil)
	if err := s.Lock(t.Context(), "n"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if len(k.objects) != 0 {
		t.Errorf("%d objects are left", len(k.objects))
	}
	if err := s.Lock(t.Context(), "n"); err == nil {
		t.Error("a closed storage locks")
	}
}
