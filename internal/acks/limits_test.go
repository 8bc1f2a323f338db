package acks

import (
	"fmt"
	"strings"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// A compromised node reports as much as it can; what is kept of it is bounded,
// and what it takes back is free again.
func TestANodeCannotFillTheMemoryWithReports(t *testing.T) {
	const limit = 1 << 20
	a := New(Params{BytesPerNode: limit, EndedPerNode: 100, Revocations: 10})
	s := a.Open("n1")
	apply := func(r *nodev1.ReportRequest) {
		t.Helper()
		if err := s.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() (lines, bytes int) {
		for _, sub := range a.nodes["n1"].subscribers {
			for _, st := range sub.states {
				lines, bytes = lines+1, bytes+sizeOf(st)
			}
		}
		return lines, bytes
	}
	padding := strings.Repeat("é", 4<<10)
	var gone []string
	for sub := range 50 {
		r := &nodev1.ReportRequest{}
		for i := range 100 {
			r.States = append(r.States, &nodev1.SubscriberState{Subscriber: fmt.Sprint(sub), Type: "t", Name: fmt.Sprint(i), Error: padding})
		}
		r.Served = []*nodev1.ServedCertificate{{Subscriber: fmt.Sprint(sub), Serial: padding}}
		apply(r)
		apply(r) // again: nothing is counted twice
		gone = append(gone, fmt.Sprint(sub))
	}
	lines, bytes := kept()
	if bytes > limit || bytes != a.nodes["n1"].bytes || lines < 1000 {
		t.Errorf("%d lines with %d bytes are kept and counted as %d, want at most %d", lines, bytes, a.nodes["n1"].bytes, limit)
	}
	for name, sub := range a.nodes["n1"].subscribers {
		if sub.served != nil {
			t.Errorf("%s: a serial of %d bytes is kept", name, len(sub.served.Serial))
		}
	}
	apply(&nodev1.ReportRequest{Gone: gone, States: []*nodev1.SubscriberState{{Subscriber: "new", Type: "t", Name: padding + padding, SentVersion: "1"}}})
	if lines, _ := kept(); lines != 0 || a.nodes["n1"].bytes != 0 {
		t.Errorf("%d lines are left and %d bytes counted; want none, and no name of 16 KiB", lines, a.nodes["n1"].bytes)
	}
	for id := range 50 {
		r := &nodev1.ReportRequest{}
		for sub := range 50 {
			r.Ended = append(r.Ended, &nodev1.ConnectionsEnded{Revocation: fmt.Sprint(id), Subscriber: fmt.Sprint(sub)})
		}
		apply(r)
	}
	total := 0
	for id := range a.ended {
		total += len(a.Ended(id))
	}
	if total > 100 || total != a.endings["n1"] || len(a.ended) > 10 {
		t.Errorf("%d lines on ended connections of %d revocations, counted as %d; want at most 100 of 10", total, len(a.ended), a.endings["n1"])
	}
}
