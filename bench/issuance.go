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
		rows = append(rows, fact("issuance, durable and recorded, "+batchName(batch), value, "/s per core").beside("floor", limit).ratioAtLeast(0.6))
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

// batchName is how a rate's row says what was asked at once.
func batchName(batch int) string {
	if batch == 1 {
		return "one by one"
	}
	return fmt.Sprintf("batches of %d", batch)
}
