package upstream

import (
	"fmt"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/server/node/nodetest"
)

func line(subscriber, name, acked string) *nodev1.SubscriberState {
	return &nodev1.SubscriberState{Subscriber: subscriber, Class: nodev1.Class_CLASS_ACKNOWLEDGED, Type: "secret", Name: name, SentVersion: acked, AckedVersion: acked, AckedCrlNumber: 1}
}

func TestReportsReachTheLedgerAndAreToldWholeAfterReconnect(t *testing.T) {
	p := nodetest.New(t)
	a := newAgent(t, p)
	a.params.Snapshot = func() *nodev1.ReportRequest {
		return &nodev1.ReportRequest{States: []*nodev1.SubscriberState{line("envoy/1", "ROOTCA", "v2"), line("envoy/2", "ROOTCA", "v1")}}
	}
	a.start()
	a.until("synced", synced)
	has := func(want string) func() bool {
		return func() bool {
			got := ""
			for _, s := range p.Acks.Subscribers("web-1") {
				if s.Away {
					got += "(away)"
				}
				got += fmt.Sprintf("%s=%s ", s.Name, s.States[0].GetAckedVersion())
			}
			return got == want
		}
	}
	nodetest.Eventually(t, "the snapshot", has("envoy/1=v2 envoy/2=v1 "))
	a.Report(&nodev1.ReportRequest{Gone: []string{"envoy/1"}, States: []*nodev1.SubscriberState{line("envoy/2", "ROOTCA", "v2")}})
	nodetest.Eventually(t, "the change", has("envoy/2=v2 "))
	p.Stop()
	a.until("down", func(v *View) bool { return !v.Connected })
	nodetest.Eventually(t, "away", has("(away)envoy/2=v2 "))
	a.Report(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{Revocation: "r1", Subscriber: "envoy/2", Closed: 4}}})
	p.Start()
	nodetest.Eventually(t, "everything again", has("envoy/1=v2 envoy/2=v1 "))
	nodetest.Eventually(t, "the event that happened meanwhile", func() bool {
		e := p.Acks.Ended("r1")
		return len(e) == 1 && e[0].GetClosed() == 4
	})
}

func TestReportQueueIsBoundedAndCoalesces(t *testing.T) {
	l := New(Params{})
	for i := range 10 {
		l.Report(&nodev1.ReportRequest{States: []*nodev1.SubscriberState{line("envoy/1", "ROOTCA", fmt.Sprint(i))}})
	}
	req := l.reports.take()
	if len(req.GetStates()) != 1 || req.GetStates()[0].GetAckedVersion() != "9" || l.reports.take() != nil {
		t.Fatalf("%v", req)
	}
	for i := range maxEnded + 10 {
		l.Report(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{Revocation: fmt.Sprint(i)}}})
	}
	if n := len(l.reports.ended); n != maxEnded || l.reports.ended[0].GetRevocation() != "10" {
		t.Fatalf("%d events, the oldest %s", n, l.reports.ended[0].GetRevocation())
	}
	for i := range 3 * perMessage {
		l.Report(&nodev1.ReportRequest{Gone: []string{fmt.Sprint(i)}, States: []*nodev1.SubscriberState{line(fmt.Sprint(i), "x", "v")}})
	}
	gone, early := 0, false
	for req := l.reports.take(); req != nil; req = l.reports.take() {
		gone += len(req.GetGone())
		early = early || len(req.GetStates()) > 0 && gone < 3*perMessage
		if n := len(req.GetGone()) + len(req.GetStates()) + len(req.GetEnded()); n > perMessage {
			t.Fatalf("a message of %d lines", n)
		}
	}
	if gone != 3*perMessage || early {
		t.Fatalf("%d gone; a state came before who is gone: %v", gone, early)
	}
}
