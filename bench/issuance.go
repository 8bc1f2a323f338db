package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store/etcd"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SPIRE 1.15.3 per core used, on a machine like ours: an agent's mTLS
// connection, 16 callers, one by one and in batches of 50.
const (
	spireSingle = 1500.0
	spireBatch  = 2700.0
)

const issuers = 16 // concurrent callers

var benchDomain = spiffeid.RequireTrustDomainFromString("bench.test")

// authority is the real one over the real store, in this process.
type authority struct {
	store   *etcd.Store
	ca      *ca.Authority
	journal *ledger.Journal
}

func openAuthority(ctx context.Context, dir string) (_ *authority, err error) {
	a := &authority{}
	if a.store, err = etcd.Open(ctx, etcd.Config{Dir: dir}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			a.store.Close()
		}
	}()
	kek, err := file.OpenKEK(durable.OS, filepath.Join(dir, "kek"), true)
	if err != nil {
		return nil, err
	}
	keys, err := file.New(file.Params{Store: a.store, TrustDomain: benchDomain.Name(), KEK: kek})
	if err != nil {
		return nil, err
	}
	if a.journal, err = ledger.Open(ctx, ledger.Params{Store: a.store, TrustDomain: benchDomain.Name()}); err != nil {
		return nil, err
	}
	a.ca, err = ca.Open(ctx, ca.Params{Store: a.store, Custody: keys, Journal: a.journal, TrustDomain: benchDomain})
	return a, err
}

// issuance is in this process: what the CA, the ledger and the store cost.
func issuance(ctx context.Context, r *run) ([]Row, error) {
	m, err := newMaterial()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.dir, "issuance")
	defer os.RemoveAll(dir)
	a, err := openAuthority(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer a.store.Close()
	var rows []Row
	for _, batch := range []int{1, 50} {
		requests := make([][]ca.X509Request, issuers)
		for c := range requests {
			for i := range batch {
				id := spiffeid.RequireFromPathf(benchDomain, "/ns/bench/sa/w%d-%d", c, i)
				csr, err := newCSR(id.String())
				if err != nil {
					return rows, err
				}
				requests[c] = append(requests[c], ca.X509Request{Profile: ca.ProfileWorkload, CSR: csr, ID: id, Namespace: "bench",
					Entry: fmt.Sprintf("bench/w%d-%d", c, i), Node: "bench", Instance: "uid:0"})
			}
		}
		sign := func(c int) error {
			for _, res := range a.ca.SignX509(ctx, requests[c]) {
				if res.Err != nil {
					return res.Err
				}
			}
			return nil
		}
		if _, err := crowd(issuers, 100*time.Millisecond, sign); err != nil { // warm
			return rows, err
		}
		limit, value, err := issuanceRate(r, m, batch, ownCPUTime, sign)
		if err != nil {
			return rows, err
		}
		rows = append(rows, issuanceRows("issuance, durable and recorded", batch, value, limit)...)
	}
	return rows, nil
}

func ownCPUTime() (time.Duration, error) { return ownCPU(), nil }

// issuanceRate is certificates per CPU second by that clock, beside the floor
// taken before and after under the same parallelism.
func issuanceRate(r *run, m *material, batch int, clock func() (time.Duration, error), sign func(int) error) (limit, value float64, err error) {
	floorTime := of(r, 400*time.Millisecond, 150*time.Millisecond)
	before, err := perCPUSecond(floorTime, m.floor)
	if err != nil {
		return 0, 0, err
	}
	start, err := clock()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	calls, err := crowd(issuers, of(r, 3*time.Second, 700*time.Millisecond), sign)
	if err != nil {
		return 0, 0, err
	}
	end, err := clock()
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(began).Seconds()
	after, err := perCPUSecond(floorTime, m.floor)
	n := float64(calls * batch)
	r.say("%d callers, batches of %d: %.0f/s, %.2f cores", issuers, batch, n/took, (end-start).Seconds()/took)
	return (before + after) / 2, n / (end - start).Seconds(), err
}

// issuanceRows are the two budgets of one rate.
func issuanceRows(what string, batch int, value, limit float64) []Row {
	kind, peer, budget := "one by one", spireSingle, 2.0
	if batch > 1 {
		kind, peer, budget = fmt.Sprintf("batches of %d", batch), spireBatch, 1.2
	}
	name := what + ", " + kind
	return []Row{
		fact(name, value, "/s per core").beside("floor", limit).ratioAtLeast(0.6),
		fact(name+", against SPIRE", value, "/s per core").beside("SPIRE 1.15.3 (PEERS.md)", peer).ratioAtLeast(budget),
	}
}
