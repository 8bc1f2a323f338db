package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"

	"github.com/legation-io/legation/test/e2e/world"
)

func TestA24OnlyDeclaredDoorsAreOpen(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	const renamed = "unix made under another name" // the modes below are of the final names
	expect := func(who string, pid int, want ...string) {
		t.Helper()
		slices.Sort(want)
		if got := world.Listening(t, pid); !slices.Equal(got, want) {
			t.Errorf("%s listens on %q, want %q", who, got, want)
		}
	}
	expect("the control plane", p.Server.PID, "tcp "+p.Server.Listen, "tcp "+p.Server.Metrics, renamed)
	sessions := p.Path("s-n1")
	entries, err := os.ReadDir(sessions)
	if err != nil {
		t.Fatal(err)
	}
	folders := slices.DeleteFunc(slices.Clone(entries), func(e os.DirEntry) bool { return !e.IsDir() })
	if len(folders) != 2 {
		t.Fatalf("folders of sessions: %v", entries)
	}
	agent := []string{"tcp " + p.node.Metrics, renamed, renamed}
	for range folders { // each has a socket of its own
		agent = append(agent, renamed)
	}
	expect("the agent", p.node.PID, agent...)
	expect("a session's parent", p.alice.PID)
	for who, s := range map[string]struct {
		session *world.Session
		port    string
	}{"alice's Envoy": {p.alice, p.outbound}, "bob's Envoy": {p.bob, p.inbound}} {
		got := world.Listening(t, s.session.Envoy())
		if len(got) != 2 || got[0] != "tcp "+s.port || !strings.HasPrefix(got[1], "unix "+sessions) || !strings.HasSuffix(got[1], "/admin.sock") {
			t.Errorf("%s listens on %q, want %s and its admin socket", who, got, s.port)
		}
	}
	for path, mode := range map[string]os.FileMode{p.Server.Admin: 0o600, p.node.Admin: 0o600, p.node.Socket: 0o666, p.Server.DataDir: 0o700, p.node.DataDir: 0o700} {
		expectMode(t, path, mode)
	}
	for _, f := range folders {
		dir := sessions + "/" + f.Name()
		expectMode(t, dir, 0o700)
		expectMode(t, dir+"/envoy.sock", 0o600)
		expectMode(t, dir+"/admin.sock", 0o600)
	}
}

func expectMode(t testing.TB, path string, want os.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if got := st.Mode().Perm(); got != want {
		t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}

func TestA24MetricsAreReadAndNothingElse(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for _, row := range []struct {
		method, url string
		code        int
	}{
		{"GET", p.Server.Metrics + "/metrics", 200}, {"GET", p.Server.Metrics + "/readyz", 200},
		{"POST", p.Server.Metrics + "/metrics", 405}, {"DELETE", p.Server.Metrics + "/metrics", 405}, {"PUT", p.Server.Metrics + "/livez", 405},
		{"GET", p.Server.Metrics + "/debug/pprof/", 404}, {"GET", p.Server.Metrics + "/", 404}, {"GET", p.Server.Metrics + "/quitquitquit", 404},
		{"GET", p.node.Metrics + "/metrics", 200}, {"GET", p.node.Metrics + "/metrics/envoy", 200}, {"GET", p.node.Metrics + "/readyz", 200},
		{"POST", p.node.Metrics + "/metrics/envoy", 405}, {"GET", p.node.Metrics + "/config_dump", 404}, {"POST", p.node.Metrics + "/quitquitquit", 404},
		{"GET", p.node.Metrics + "/debug/pprof/", 404}, {"GET", p.node.Metrics + "/metrics/envoy/../../config_dump", 307},
	} {
		request, err := http.NewRequest(row.method, "http://"+row.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<20))
		response.Body.Close()
		if response.StatusCode != row.code {
			t.Errorf("%s %s: %d %.80q, want %d", row.method, row.url, response.StatusCode, body, row.code)
		}
	}
}

// A10, A51: every RPC that somebody without the right to it can reach.
func TestA10A51NoRPCWithoutItsRole(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	n := w.Join("n1")
	_, cert := me(t, w, n)
	methods := func(list ...grpc.ServiceDesc) (names []string) {
		for _, d := range list {
			for _, m := range d.Methods {
				names = append(names, "/"+d.ServiceName+"/"+m.MethodName)
			}
			for _, s := range d.Streams {
				names = append(names, "/"+d.ServiceName+"/"+s.StreamName)
			}
		}
		return names
	}
	admin := methods(adminv1.Admin_ServiceDesc)
	node := methods(nodev1.Node_ServiceDesc)
	foreign := append(methods(localv1.AgentAdmin_ServiceDesc, localv1.Sessions_ServiceDesc),
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/legation.admin.v1.Admin/SignAnything", "/legation.node.v1.Node/")
	for who, certs := range map[string][]tls.Certificate{"a caller without a certificate": nil, "a workload": {*cert}} {
		conn, err := grpc.NewClient("passthrough:///"+w.Server.Listen, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: certs})))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range slices.Concat(admin, node, foreign) {
			if code := call(conn, m); code != codes.PermissionDenied && code != codes.Unauthenticated && code != codes.Unimplemented {
				t.Errorf("%s calls %s: %s", who, m, code)
			}
		}
		conn.Close()
	}
	// The public socket of an agent has no admin behind it either.
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, m := range slices.Concat(admin, node, methods(localv1.AgentAdmin_ServiceDesc)) {
		if code := call(conn, m); code != codes.PermissionDenied && code != codes.Unimplemented {
			t.Errorf("a program calls %s on the agent's socket: %s", m, code)
		}
	}
	var certs []struct{ SPIFFEID string }
	w.JSON(&certs, "cert", "list", "--spiffe-id", world.ID("me"))
	if len(certs) == 0 {
		t.Error("the workload that asked has no certificate in the inventory")
	}
}

// call sends an empty message and returns how the call was answered.
func call(conn *grpc.ClientConn, method string) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), world.Patience)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err == nil {
		_ = stream.SendMsg(&emptypb.Empty{})
		_ = stream.CloseSend()
		err = stream.RecvMsg(&emptypb.Empty{})
	}
	if err == io.EOF {
		return codes.OK
	}
	return status.Code(err)
}

// A05: one token, many who try at once.
func TestA05OneTokenAdmitsOneOfMany(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	token := w.Token("n1")
	file := w.Write("token", token.Token, 0o600)
	var nodes []*world.Node
	for i := range 8 {
		n := w.NewNode(fmt.Sprintf("try-%d", i), "--join-token-file", file, "--bundle-hash", token.BundleHash)
		n.Launch()
		nodes = append(nodes, n)
	}
	admitted := 0
	world.Until(t, world.Patience, "each is admitted or refused", func() error {
		admitted = 0
		for _, n := range nodes {
			if n.Ended() {
				continue
			}
			st, err := n.Status()
			switch {
			case err != nil:
				return err
			case st.Connected:
				admitted++
			case st.LastError == "":
				return fmt.Errorf("%s has no answer yet", n.Name)
			}
		}
		if admitted == 0 {
			return fmt.Errorf("nobody was admitted yet")
		}
		return nil
	})
	if admitted != 1 {
		t.Errorf("one token admitted %d nodes", admitted)
	}
}
