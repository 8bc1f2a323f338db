package cli

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
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
