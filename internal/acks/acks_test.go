package acks_test

import (
	"slices"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
)

const (
	unknown      = nodev1.Class_CLASS_UNKNOWN
	delivered    = nodev1.Class_CLASS_DELIVERED
	acknowledged = nodev1.Class_CLASS_ACKNOWLEDGED
	enforcing    = nodev1.Class_CLASS_ENFORCING
)

func state(subscriber string, class nodev1.Class, name, sent, acked string, crl uint64) *nodev1.SubscriberState {
	return &nodev1.SubscriberState{Subscriber: subscriber, Class: class, Type: "secret", Name: name, SentVersion: sent, AckedVersion: acked, AckedCrlNumber: crl}
}

func TestCRLIsCountedByClass(t *testing.T) {
	a := acks.New(acks.Params{})
	web, db := a.Open("web-1"), a.Open("db-1")
	apply(t, web,
		state("envoy/1", acknowledged, "ROOTCA", "v2", "v2", 5),
		state("envoy/2", acknowledged, "ROOTCA", "v2", "v1", 4),
		state("envoy/3", acknowledged, "ROOTCA", "v2", "v2", 5), // one of its two contexts is behind
		state("envoy/3", acknowledged, "ALL", "v2", "v1", 4),
		state("envoy/4", acknowledged, "default", "v1", "v1", 0), // verifies nobody
		state("workload-api/1", delivered, "x509", "v2", "v2", 6))
	apply(t, db, state("sdk/1", enforcing, "crl", "v2", "v2", 5), state("files/1", unknown, "crl", "v2", "v1", 4))
	got := a.CRL(5)
	want := map[nodev1.Class]acks.Count{
		acknowledged: {Total: 3, Reached: 1}, delivered: {Total: 1, Reached: 1}, enforcing: {Total: 1, Reached: 1}, unknown: {Total: 1, Reached: 0},
	}
	for class, count := range want {
		if got.Classes[class] != count {
			t.Errorf("%s: %+v; want %+v", class, got.Classes[class], count)
		}
	}
	if !slices.Equal(got.Missing, []string{"db-1/files/1", "web-1/envoy/2", "web-1/envoy/3"}) {
		t.Errorf("missing %v", got.Missing)
	}
	db.Close()
	got = a.CRL(5)
	if got.Classes[enforcing].Total != 0 || got.Classes[unknown].Total != 2 || !slices.Equal(got.Away, []string{"db-1/files/1", "db-1/sdk/1"}) {
		t.Errorf("after the node went away: %+v", got)
	}
	back := a.Open("db-1")
	if got := a.CRL(5); got.Classes[unknown].Total != 0 {
		t.Errorf("a node that is back tells everything anew: %+v", got)
	}
	apply(t, back, state("sdk/1", enforcing, "crl", "v2", "v2", 5))
	db.Close() // the old stream ends late
	if got := a.CRL(5); got.Classes[enforcing].Reached != 1 {
		t.Errorf("the end of a replaced stream marked the node away: %+v", got)
	}
	if err := db.Apply(&nodev1.ReportRequest{}); err == nil {
		t.Error("a replaced stream still reports")
	}
}

func apply(t *testing.T, s *acks.Session, states ...*nodev1.SubscriberState) {
	t.Helper()
	if err := s.Apply(&nodev1.ReportRequest{States: states}); err != nil {
		t.Fatal(err)
	}
}

func TestGoneComesBeforeWhatIs(t *testing.T) {
	a := acks.New(acks.Params{})
	s := a.Open("web-1")
	apply(t, s, state("envoy/1", acknowledged, "old", "v", "v", 1))
	if err := s.Apply(&nodev1.ReportRequest{Gone: []string{"envoy/1"}, States: []*nodev1.SubscriberState{state("envoy/1", acknowledged, "new", "v", "v", 2)}}); err != nil {
		t.Fatal(err)
	}
	subs := a.Subscribers("web-1")
	if len(subs) != 1 || len(subs[0].States) != 1 || subs[0].States[0].GetName() != "new" || subs[0].CRLNumber != 2 {
		t.Fatalf("%+v", subs)
	}
}

func TestOneNodeCannotFillTheLedger(t *testing.T) {
	a := acks.New(acks.Params{SubscribersPerNode: 2, StatesPerSubscriber: 2, Revocations: 2})
	s := a.Open("web-1")
	for _, sub := range []string{"a", "b", "c"} {
		for _, name := range []string{"1", "2", "3"} {
			apply(t, s, state(sub, acknowledged, name, "v", "v", 1))
		}
	}
	subs := a.Subscribers("")
	if len(subs) != 2 || len(subs[0].States) != 2 {
		t.Fatalf("%+v", subs)
	}
	for _, id := range []string{"r1", "r2", "r3", "r3"} {
		if err := s.Apply(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{Revocation: id, Subscriber: "a", Closed: 3}}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.Ended("r1")) != 0 || len(a.Ended("r3")) != 1 || a.Ended("r3")[0].GetClosed() != 3 || a.Ended("r3")[0].Node != "web-1" {
		t.Fatalf("%v, %v", a.Ended("r1"), a.Ended("r3"))
	}
}
