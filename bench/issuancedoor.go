package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

// SPIRE 1.15.3 per core used, by batch size: an agent's mTLS connection, 16
// callers, on a machine like ours; and how many times that the budget is.
var (
	spireRate   = map[int]float64{1: 1500, 50: 2700}
	spireBudget = map[int]float64{1: 2, 50: 1.2}
)

// issuanceDoor is issuance as agents get it: over mTLS, each caller an
// attested agent, entitlement and limits checked; CPU is the server's alone.
func issuanceDoor(ctx context.Context, r *run) ([]Row, error) {
	m, err := newMaterial()
	if err != nil {
		return nil, err
	}
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	names := numbered("w%d", 50)
	var docs strings.Builder
	for i, name := range names {
		docs.WriteString(identity(name, fmt.Sprintf("unix:uid:%d", 1000+i)))
	}
	if err := p.apply(ctx, docs.String()); err != nil {
		return nil, err
	}
	ns, err := attachNodes(ctx, p, 0, issuers)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	var rows []Row
	for _, batch := range []int{1, 50} {
		requests := make([][]*nodev1.X509Item, issuers)
		for c := range requests {
			for i := range batch {
				name := names[(c+i)%len(names)]
				csr, err := newCSR(idOf(name))
				if err != nil {
					return rows, err
				}
				requests[c] = append(requests[c], &nodev1.X509Item{Entry: "bench/" + name, SpiffeId: idOf(name), Instance: "uid:0", Csr: csr})
			}
		}
		sign := func(c int) error {
			results, err := ns.links[c].SignX509(ctx, requests[c])
			if err != nil {
				return err
			}
			for _, res := range results {
				if refusal := res.GetRefusal(); refusal != nil {
					return errors.New(refusal.GetMessage())
				}
			}
			return nil
		}
		if _, err := crowd(issuers, 100*time.Millisecond, sign); err != nil { // warm
			return rows, err
		}
		limit, value, err := issuanceRate(r, m, batch, func() (time.Duration, error) { return cpuOf(p.pid) }, sign)
		if err != nil {
			return rows, err
		}
		name := "issuance over mTLS, durable and recorded, " + batchName(batch)
		rows = append(rows,
			fact(name, value, "/s per core").beside("floor", limit).ratioAtLeast(0.6),
			fact(name+", against SPIRE", value, "/s per core").beside("SPIRE 1.15.3", spireRate[batch]).ratioAtLeast(spireBudget[batch]))
	}
	return rows, nil
}
