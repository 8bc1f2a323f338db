package node_test

import (
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"google.golang.org/grpc"
)

type trustClient struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[nodev1.TrustRequest, nodev1.TrustResponse]
}

func openTrust(t *testing.T, conn *grpc.ClientConn, known ...*nodev1.ResourceVersion) trustClient {
	t.Helper()
	stream, err := nodev1.NewNodeClient(conn).Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Open{Open: &nodev1.TrustOpen{Hello: hello(), Known: known}}})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := stream.Recv(); err != nil || res.GetHello().GetTrustDomain() != "example.org" {
		t.Fatalf("%v, %v", res, err)
	}
	return trustClient{t, stream}
}

func (c trustClient) next() *nodev1.TrustResponse {
	c.t.Helper()
	res, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return res
}

func (c trustClient) ack(nonce, refusal string) {
	c.t.Helper()
	if err := c.stream.Send(&nodev1.TrustRequest{Message: &nodev1.TrustRequest_Ack{Ack: &nodev1.Ack{Nonce: nonce, Error: refusal}}}); err != nil {
		c.t.Fatal(err)
	}
}

// untilSynced collects what comes before the marker.
func (c trustClient) untilSynced() []*nodev1.TrustResource {
	c.t.Helper()
	var out []*nodev1.TrustResource
	for {
		res := c.next()
		if res.GetSynced() != nil {
			return out
		}
		out = append(out, res.GetResource())
		c.ack(res.GetResource().GetNonce(), "")
	}
}

func TestTrustSendsWhatVerifiesFirstAndOnlyWhatThisNodeMaySee(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	p.SetEntry("web-1", entry("web"))
	p.SetEntry("db-1", entry("db"))
	p.SetTrust("all", "crl", "default", p.Authority.CRL(t, 1))
	p.SetTrust("all", "heartbeat", "default", p.Authority.Heartbeat(t, 1))
	p.SetTrust("all", "future-type", "x", &nodev1.Hello{})
	var got []string
	var known []*nodev1.ResourceVersion
	for _, r := range openTrust(t, conn).untilSynced() {
		got = append(got, r.GetType()+" "+r.GetName())
		known = append(known, &nodev1.ResourceVersion{Type: r.GetType(), Name: r.GetName(), Version: r.GetVersion()})
	}
	want := []string{"bundle example.org", "crl default", "entry default/web", "heartbeat default"}
	if len(got) != len(want) {
		t.Fatalf("%q; want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%q; want %q", got, want)
		}
	}
	// Again, by one who has all of it, and something that is gone.
	known = append(known, &nodev1.ResourceVersion{Type: "entry", Name: "default/gone", Version: "x"}, &nodev1.ResourceVersion{Type: "who-knows", Name: "x", Version: "y"})
	again := openTrust(t, conn, known...).untilSynced()
	if len(again) != 1 || !again[0].GetRemoved() || again[0].GetName() != "default/gone" {
		t.Fatalf("sent again: %v; want only the removal", again)
	}
}

// A54: one resource that an agent refuses stops no other.
func TestA54RefusedResourceHasOneCulprit(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	c := openTrust(t, conn)
	c.untilSynced()
	p.SetEntry("web-1", entry("bad"))
	c.ack(c.next().GetResource().GetNonce(), "no selectors")
	p.SetEntry("web-1", entry("good"))
	r := c.next().GetResource()
	if r.GetName() != "default/good" {
		t.Fatalf("%v", r)
	}
	c.ack(r.GetNonce(), "")
	nodetest.Eventually(t, "the ledger names the culprit alone", func() bool {
		lines := p.Engine.Statuses(distribute.Filter{Subscriber: "node/web-1", Behind: true})
		return len(lines) == 1 && lines[0].Name == "default/bad" && lines[0].Error == "no selectors"
	})
	c.ack("nonsense", "")
	c.ack("99/entry", "")
	p.RemoveEntry("web-1", "default/good")
	if r := c.next().GetResource(); !r.GetRemoved() || r.GetName() != "default/good" {
		t.Fatalf("%v", r)
	}
}
