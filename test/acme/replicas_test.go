package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/test/acme/pebble"
	"github.com/legation-io/legation/test/e2e/world"
)

// balancer sends one connection to each of its targets in turn.
func balancer(t testing.TB, targets ...string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var carrying sync.WaitGroup
	t.Cleanup(func() { l.Close(); carrying.Wait() })
	var next atomic.Int64
	carrying.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() {
				defer in.Close()
				// The next one that answers: a replica may be dead.
				for i, begin := 0, int(next.Add(1)); i < len(targets); i++ {
					out, err := net.DialTimeout("tcp", targets[(begin+i)%len(targets)], time.Second)
					if err != nil {
						continue
					}
					defer out.Close()
					in.SetDeadline(time.Now().Add(time.Minute))
					out.SetDeadline(time.Now().Add(time.Minute))
					carrying.Go(func() { io.Copy(out, in); out.(*net.TCPConn).CloseWrite() })
					io.Copy(in, out)
					return
				}
			})
		}
	})
	return l
}

// fleet is two nodes with a replica each, behind one balancer.
type fleet struct {
	*world.World
	pebble  *pebble.Pebble
	program string
	key     string
	nodes   [2]*world.Node
	http    [2]string
	https   [2]string
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{World: world.Start(t)}
	f.program = f.Path("replica")
	build := exec.Command("go", "build", "-o", f.program, "github.com/legation-io/legation/test/acme/replica")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.key = f.Write("sealing.key", strings.Repeat("6f1d0c3be2a94857", 4)+"\n", 0o600)
	var yaml strings.Builder
	for i := range f.nodes {
		f.nodes[i] = f.Join(fmt.Sprintf("n%d", i+1))
		f.http[i], f.https[i] = f.IP()+":8080", f.IP()+":8443"
		fmt.Fprintf(&yaml, "apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: model-%d, namespace: default}\nspec: {node: n%d, spiffeID: \"spiffe://%s/ns/default/sa/model\", ttl: 1h, selectors: [\"unix:path:%s\"]}\n---\n", i+1, i+1, world.TrustDomain, f.program)
	}
	f.Apply(yaml.String())
	f.pebble = pebble.Start(t, pebble.Options{HTTPPort: port(balancer(t, f.http[0], f.http[1])), TLSPort: 1, Env: []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=20"}})
	return f
}

// start runs replica i, which orders of a directory; ttl is LockTTL.
func (f *fleet) start(i int, directory, roots string, ttl time.Duration) *world.Process {
	f.Helper()
	return f.Run(fmt.Sprintf("replica-%d", i+1), []string{f.program, "-socket", f.nodes[i].Socket, "-key-file", f.key, "-directory", directory,
		"-roots", roots, "-domain", "model.test", "-http", f.http[i], "-https", f.https[i], "-lock-ttl", ttl.String()})
}

// shown is the serial that replica i serves.
func (f *fleet) shown(i int, roots *x509.CertPool) (string, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", f.https[i], &tls.Config{ServerName: "model.test", RootCAs: roots})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return serial(c.ConnectionState().PeerCertificates[0]), nil
}

func (f *fleet) rootFile(name string, certificate *x509.Certificate) string {
	return f.Write(name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})), 0o600)
}

func TestReplicasOnTwoNodesShareOneCertificate(t *testing.T) {
	f := newFleet(t)
	front := newFront(t, f.pebble)
	roots := f.rootFile("front.pem", front.certificate)
	// LockTTL is longer than a replica is ever held up on a busy machine: one
	// that cannot renew its lock loses it, and then both order.
	first := f.start(0, front.Directory, roots, time.Minute)
	second := f.start(1, front.Directory, roots, time.Minute)
	pool := f.pebble.Roots(t)
	both := func() string {
		var one string
		world.Until(f, world.Patience, "both serve one certificate", func() error {
			a, errA := f.shown(0, pool)
			b, errB := f.shown(1, pool)
			if err := errors.Join(errA, errB); err != nil {
				return err
			}
			if one = a; a != b {
				return fmt.Errorf("%s and %s", a, b)
			}
			return nil
		})
		return one
	}
	served := both()
	if n := f.pebble.Log.Count("Issued certificate serial"); n != 1 {
		t.Errorf("%d certificates were ordered", n)
	}
	t.Run("that nobody else can read or has", func(t *testing.T) {
		var seen []string
		err := filepath.WalkDir(f.Server.DataDir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			if strings.Contains(string(content), "acmecert/certificates/") {
				seen = append(seen, path)
			}
			if strings.Contains(string(content), "EC PRIVATE KEY") {
				t.Errorf("%s holds a key in clear", path)
			}
			return err
		})
		if err != nil || len(seen) == 0 {
			t.Errorf("the store was not looked at: %v", err)
		}
	})
	t.Run("and keep it over the death of everything", func(t *testing.T) {
		f.Server.Kill()
		first.Kill()
		second.Kill()
		f.Server.Start()
		for _, n := range f.nodes {
			n.Connected()
		}
		f.start(0, front.Directory, roots, time.Minute)
		f.start(1, front.Directory, roots, time.Minute)
		if again := both(); again != served {
			t.Errorf("%s was served, now %s", served, again)
		}
		if n := f.pebble.Log.Count("Issued certificate serial"); n != 1 {
			t.Errorf("%d certificates were ordered", n)
		}
	})
}

func TestAReplicaThatIsKilledInAnOrderHoldsUpNoOther(t *testing.T) {
	f := newFleet(t)
	front := newFront(t, f.pebble)
	roots := f.rootFile("front.pem", front.certificate)
	asked := make(chan struct{}, 10)
	front.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/finalize-order") {
			return false
		}
		asked <- struct{}{}
		return front.hang(r)
	}, nil)
	first := f.start(0, front.Directory, roots, 4*time.Second)
	select {
	case <-asked: // it holds its locks now
	case <-time.After(world.Patience):
		t.Fatal("no order came so far")
	}
	front.misbehave(nil, nil)
	second := f.start(1, front.Directory, roots, 4*time.Second)
	begun := time.Now()
	first.Kill()
	pool := f.pebble.Roots(t)
	world.Until(f, 3*world.Patience, "the other serves", func() error { _, err := f.shown(1, pool); return err })
	took := time.Since(begun)
	t.Logf("it served %s after the kill; LockTTL is 4 s, and it takes two locks\n%s", took.Round(time.Millisecond), second.Output())
	if !strings.Contains(second.Output(), "taken over") {
		t.Errorf("it did not wait for the lock: %s", took)
	}
}

// TestObjectsAreOfAnIdentityAlone: a program of the same node with another
// identity finds nothing of the replicas'.
func TestObjectsAreOfAnIdentityAlone(t *testing.T) {
	f := newFleet(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(world.Identity("stranger", "n1", "unix:path:"+self))
	objects := client(t, f.nodes[0].Socket)
	ctx, cancel := context.WithTimeout(t.Context(), 5*world.Patience) // of all that follows
	defer cancel()
	world.Until(f, world.Patience, "the stranger has an identity", func() error { _, err := objects.list(ctx, ""); return err })
	if err := objects.put(ctx, "", "mine", "v"); err != nil {
		t.Fatal(err)
	}
	model := "spiffe://" + world.TrustDomain + "/ns/default/sa/model"
	if _, err := objects.list(ctx, model); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if err := objects.put(ctx, model, "theirs", "v"); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if keys, err := objects.list(ctx, ""); err != nil || len(keys) != 1 || keys[0] != "mine" {
		t.Error(keys, err)
	}
	t.Run("and an acknowledged one survives kill -9 of the control plane", func(t *testing.T) {
		for i := range 20 {
			if err := objects.put(ctx, "", fmt.Sprintf("k%d", i), "v"); err != nil {
				t.Fatal(err)
			}
		}
		f.Server.Kill()
		f.Server.Start()
		f.nodes[0].Connected()
		world.Until(f, world.Patience, "all are there", func() error {
			keys, err := objects.list(ctx, "")
			if err == nil && len(keys) != 21 {
				err = fmt.Errorf("%d", len(keys))
			}
			return err
		})
	})
}
