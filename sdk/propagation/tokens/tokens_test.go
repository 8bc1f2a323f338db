package tokens_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/jwtcheck"
	"github.com/legation-io/legation/sdk/propagation"
	"github.com/legation-io/legation/sdk/propagation/internal/fakeca"
	"github.com/legation-io/legation/sdk/propagation/tokens"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// agent is a socket with the Workload API, and with Tokens unless it is
// another implementation's.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	workloadv1.UnimplementedTokensServer
	ca     *fakeca.CA
	answer string // instead of a token
}

func (a *agent) sign(id string, audience []string, ext map[string]string) (string, error) {
	if a.answer != "" {
		return a.answer, nil
	}
	if id == "" {
		id = a.ca.ID("orders").String()
	}
	if id == a.ca.ID("admin").String() {
		return "", status.Error(codes.PermissionDenied, "not the caller's")
	}
	with := map[string]any{}
	if len(ext) > 0 {
		with["ext"] = ext
	}
	return a.ca.Sign(spiffeid.RequireFromString(id), audience, with)
}

func (a *agent) FetchJWTSVID(_ context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	token, err := a.sign(r.SpiffeId, r.Audience, nil)
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: r.SpiffeId, Svid: token}}}, err
}

type tokensServer struct{ *agent }

func (t tokensServer) FetchJWTSVID(_ context.Context, r *workloadv1.FetchJWTSVIDRequest) (*workloadv1.FetchJWTSVIDResponse, error) {
	token, err := t.sign(r.SpiffeId, r.Audience, r.Ext)
	return &workloadv1.FetchJWTSVIDResponse{Token: token, ExpiresAtUnix: time.Now().Add(5 * time.Minute).Unix()}, err
}

// serve returns a connection to the socket.
func serve(t testing.TB, a *agent, links bool) *grpc.ClientConn {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	if links {
		workloadv1.RegisterTokensServer(server, tokensServer{a})
	}
	var running sync.WaitGroup
	running.Go(func() { server.Serve(l) })
	conn, err := workloadapi.Dial("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		running.Wait()
	})
	return conn
}

func TestHopsAreLinkedByTheAgentAndPlainElsewhere(t *testing.T) {
	ca := fakeca.New(t, "example.org")
	keys := jwtcheck.Static{K: jwtcheck.NewKeys(ca.Bundle(t))}
	for _, links := range []bool{true, false} {
		conn := serve(t, &agent{ca: ca}, links)
		out, err := propagation.NewOutbound(propagation.Config{Identity: identity.NewMemory(&identity.Snapshot{ID: ca.ID("orders")}), Tokens: tokens.New(conn, ca.ID("orders"))})
		if err != nil {
			t.Fatal(err)
		}
		shop, err := ca.Sign(ca.ID("shop"), []string{ca.ID("orders").String()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		orders, err := propagation.NewInbound(propagation.Config{Identity: identity.NewMemory(&identity.Snapshot{ID: ca.ID("orders")}), Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		chain, err := orders.Accept(propagation.Received{Peer: identity.Peer{ID: ca.ID("shop")}, Tokens: []string{"jwt:" + shop}})
		if err != nil {
			t.Fatal(err)
		}
		header, err := out.Header(propagation.NewContext(t.Context(), chain), ca.ID("db"))
		if err != nil {
			t.Fatal(err)
		}
		db, err := propagation.NewInbound(propagation.Config{Identity: identity.NewMemory(&identity.Snapshot{ID: ca.ID("db")}), Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		got, err := db.Accept(propagation.Received{Peer: identity.Peer{ID: ca.ID("orders")}, Tokens: []string{header}})
		want := "spiffe://example.org/shop > spiffe://example.org/orders"
		if !links {
			want = "spiffe://example.org/orders"
		}
		if err != nil || got.String() != want {
			t.Errorf("links %v: %v, %v; want %s", links, got, err, want)
		}
	}
}

func TestAnswersThatAreNotTaken(t *testing.T) {
	ca := fakeca.New(t, "example.org")
	other, err := ca.Sign(ca.ID("other"), []string{ca.ID("db").String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := ca.Sign(ca.ID("orders"), []string{ca.ID("stock").String()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, links := range []bool{true, false} {
		for name, tc := range map[string]struct {
			id     spiffeid.ID
			answer string
			want   string
		}{
			"another's token":      {ca.ID("orders"), other, "was asked for"},
			"a token for somebody": {ca.ID("orders"), elsewhere, "audience"},
			"no token":             {ca.ID("orders"), "x", "JWT-SVID"},
			"not our identity":     {ca.ID("admin"), "", "PermissionDenied"},
		} {
			_, err := tokens.New(serve(t, &agent{ca: ca, answer: tc.answer}, links), tc.id).Token(t.Context(), ca.ID("db"), nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("links %v: %s: %v", links, name, err)
			}
		}
	}
	conn, err := workloadapi.Dial("unix://" + filepath.Join(t.TempDir(), "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := tokens.New(conn, spiffeid.ID{}).Token(t.Context(), ca.ID("db"), nil); status.Code(err) != codes.Unavailable {
		t.Errorf("without an agent: %v", err)
	}
}

// The usual Tokens of a propagation.Config: the agent's socket.
func Example() {
	t := &testing.T{}
	ca := fakeca.New(t, "example.org")
	conn := exampleConn(ca) // workloadapi.Dial("")

	source := tokens.New(conn, spiffeid.ID{})
	token, err := source.Token(context.Background(), ca.ID("db"), map[string]string{"team": "checkout"})
	if err != nil {
		fmt.Println(err)
		return
	}
	verified, err := jwtcheck.New(jwtcheck.Config{}).Verify(jwtcheck.NewKeys(ca.Bundle(t)), token.Text, ca.ID("db").String())
	if err != nil {
		fmt.Println(err)
		return
	}
	ext, _ := verified.Claim("ext")
	fmt.Println(verified.ID, ext, token.Plain)
	// Output: spiffe://example.org/orders map[team:checkout] false
}

// exampleConn answers without a socket.
type inProcess struct {
	grpc.ClientConnInterface
	a *agent
}

func exampleConn(ca *fakeca.CA) grpc.ClientConnInterface { return inProcess{a: &agent{ca: ca}} }

// Invoke implements grpc.ClientConnInterface.
func (c inProcess) Invoke(ctx context.Context, _ string, args, reply any, _ ...grpc.CallOption) error {
	r, err := tokensServer{c.a}.FetchJWTSVID(ctx, args.(*workloadv1.FetchJWTSVIDRequest))
	if err != nil {
		return err
	}
	out := reply.(*workloadv1.FetchJWTSVIDResponse)
	out.Token, out.ExpiresAtUnix = r.Token, r.ExpiresAtUnix
	return nil
}
