package admin

import (
	"slices"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
)

func TestStatusNamesWhatIsWrongAndWhatToDo(t *testing.T) {
	o := newOffice(t)
	for _, name := range []string{"here", "away", "expired"} {
		rec, err := o.p.Registry.Admit(t.Context(), "join_token", node.Claim{Node: name})
		must(t, err)
		ends := o.clock.Now().Add(time.Hour)
		if name == "expired" {
			ends = o.clock.Now().Add(-time.Hour)
		}
		_, err = o.p.Registry.Issued(t.Context(), rec, "", "ab"+name[:1], ends)
		must(t, err)
	}
	o.here = []Presence{{Node: "here", Since: time.Now(), Version: "v1"}}
	s := o.p.Acks.Open("here")
	must(t, s.Apply(&nodev1.ReportRequest{States: []*nodev1.SubscriberState{
		{Subscriber: "envoy/a", Type: "listener", Name: "in", SentVersion: "2", AckedVersion: "1", Error: "bad port"},
		{Subscriber: "envoy/b", Type: "listener", Name: "in", SentVersion: "2", AckedVersion: "2"},
		{Subscriber: "envoy/c", Type: "listener", Name: "in", SentVersion: "2", AckedVersion: "1"},
	}}))
	valid := o.issue(ca.ProfileWorkload, web, "retail", "here")
	must(t, o.takeAway(owner(t), &adminv1.RevokeRequest{Serial: valid}))
	o.issue(ca.ProfileWorkload, web, "retail", "here")

	r, err := o.Status(owner(t), &adminv1.StatusRequest{})
	must(t, err)
	if len(r.Nodes) != 3 || r.Nodes[0].Name != "away" || r.Nodes[1].Name != "expired" || !r.Nodes[2].Connected || r.Nodes[2].Version != "v1" {
		t.Errorf("nodes: %v", r.Nodes)
	}
	if r.Subscribers != 3 || len(r.Behind) != 2 || r.CertificatesValid != 1 || r.CertificatesRevoked != 1 {
		t.Errorf("%d subscribers, %d behind, %d valid, %d revoked", r.Subscribers, len(r.Behind), r.CertificatesValid, r.CertificatesRevoked)
	}
	for _, want := range []string{
		"node away is away", "node expired is away and its certificate has expired; attest it again: legation token create --node expired",
		"envoy/a on here refused in: bad port",
	} {
		if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("no problem says %q: %q", want, r.Problems)
		}
	}
	if slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, "issuing CA") }) {
		t.Errorf("a new authority is no problem: %q", r.Problems)
	}
	o.clock.Jump(360 * 24 * time.Hour)
	r, err = o.Status(owner(t), &adminv1.StatusRequest{})
	must(t, err)
	if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, "the issuing CA of authority default ends in") }) {
		t.Errorf("an issuing CA near its end: %q", r.Problems)
	}
}

func TestAListingOfCertificatesIsBounded(t *testing.T) {
	o := newOffice(t)
	for range 5 {
		o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	}
	r, err := o.ListCertificates(owner(t), &adminv1.ListCertificatesRequest{Limit: 2})
	must(t, err)
	if len(r.Certificates) != 2 || r.Total != 5 {
		t.Errorf("%d of %d, want 2 of 5", len(r.Certificates), r.Total)
	}
	if r, err = o.ListCertificates(owner(t), &adminv1.ListCertificatesRequest{Limit: 1 << 31}); err != nil || len(r.Certificates) != 5 {
		t.Errorf("%d certificates, %v", len(r.Certificates), err)
	}
	o.clock.Jump(100 * 24 * time.Hour)
	if r, err = o.ListCertificates(owner(t), &adminv1.ListCertificatesRequest{}); err != nil || r.Total != 0 {
		t.Errorf("%d certificates after their end, %v", r.Total, err)
	}
	if r, err = o.ListCertificates(owner(t), &adminv1.ListCertificatesRequest{IncludeExpired: true}); err != nil || r.Total != 5 {
		t.Errorf("%d certificates with the expired, %v", r.Total, err)
	}
}
