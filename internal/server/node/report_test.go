package node_test

import (
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/server/node/nodetest"
)

func TestReportsOverTheWire(t *testing.T) {
	p := nodetest.New(t)
	conn, _ := attested(t, p, "web-1")
	changed := p.Acks.Watch()
	stream, err := nodev1.NewNodeClient(conn).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*nodev1.ReportRequest{
		{Hello: hello()},
		{States: []*nodev1.SubscriberState{{Subscriber: "envoy/1", Class: nodev1.Class_CLASS_ACKNOWLEDGED, Type: "secret", Name: "ROOTCA", SentVersion: "v", AckedVersion: "v", AckedCrlNumber: 3}},
			Served: []*nodev1.ServedCertificate{{Subscriber: "envoy/1", Serial: "ab"}}},
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	<-changed
	nodetest.Eventually(t, "it is in the ledger", func() bool { return p.Acks.CRL(3).Classes[nodev1.Class_CLASS_ACKNOWLEDGED].Reached == 1 })
	if s := p.Acks.Subscribers("web-1")[0]; s.Served.GetSerial() != "ab" {
		t.Fatalf("%+v", s)
	}
	conn.Close()
	nodetest.Eventually(t, "it is away", func() bool { return len(p.Acks.CRL(3).Away) == 1 })
}
