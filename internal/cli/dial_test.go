package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeAdmin answers with much.
type fakeAdmin struct {
	adminv1.UnimplementedAdminServer
	deadline chan time.Time
}

func (f *fakeAdmin) Get(ctx context.Context, _ *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	at, _ := ctx.Deadline()
	f.deadline <- at
	r := &adminv1.GetResponse{}
	for range 6 {
		r.Objects = append(r.Objects, &adminv1.Object{Kind: "Service", Namespace: "default", Name: "x", Json: []byte(`"` + strings.Repeat("x", 1<<20) + `"`)})
	}
	return r, nil
}

func TestAnAnswerMayBeLargeAndMustComeInTime(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g, f := grpc.NewServer(), &fakeAdmin{deadline: make(chan time.Time, 1)}
	adminv1.RegisterAdminServer(g, f)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	defer func() { g.Stop(); <-served }()
	root := New(&cobra.Command{Use: "server"})
	var out, talk bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&talk)
	root.SetArgs([]string{"--server", "unix://" + socket, "get", "service", "-o", "name"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "Service/x"); n != 6 {
		t.Errorf("%d of 6 in %q", n, out.String())
	}
	if at := <-f.deadline; at.IsZero() || time.Until(at) > answerWithin {
		t.Errorf("the call may last until %s", at)
	}
}

// denying is an agent that has no identity for whoever asks.
type denying struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
}

func (denying) FetchX509SVID(*workload.X509SVIDRequest, workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return status.Error(codes.PermissionDenied, "no entry matches; the nearest lacks unix:uid:7")
}

// saying tells what is written to it.
type saying chan string

func (s saying) Write(b []byte) (int, error) {
	s <- string(b)
	return len(b), nil
}

func TestWhoeverHasNoIdentityIsToldWhy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+socket)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said, done := make(saying, 100), make(chan error, 1)
	go func() {
		_, _, err := dial(ctx, "127.0.0.1:1", said)
		done <- err
	}()
	want := func(what string) {
		t.Helper()
		for patience := time.After(time.Minute); ; {
			select {
			case line := <-said:
				if strings.Contains(line, what) {
					return
				}
			case err := <-done:
				t.Fatalf("ended before it said %q: %v", what, err)
			case <-patience:
				t.Fatalf("%q is not said", what)
			}
		}
	}
	want("no such file")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, denying{})
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(l) }()
	defer func() { g.Stop(); <-served }()
	want("no entry matches")
	cancel()
	err = <-done
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no entry matches; the nearest lacks unix:uid:7\ntry: ") {
		t.Errorf("the last word is %v", err)
	}
}

func TestAnAddressThatIsNoneIsRefusedAtOnce(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+filepath.Join(t.TempDir(), "s"))
	for target, write := range map[string]string{
		"/tmp/x.sock": "write unix:///tmp/x.sock", "unix:/tmp/x.sock": "write unix:///tmp/x.sock", "x.sock": "write unix://x.sock", "": "no HOST:PORT",
	} {
		_, _, err := dial(t.Context(), target, io.Discard)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), write) {
			t.Errorf("%q: %v, want %q", target, err, write)
		}
	}
}
