package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/etcd"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// workloadAPI is what a program sees of a real agent: its first SVID when it
// is warm, and a new entry's while it waits on an open stream.
func workloadAPI(ctx context.Context, r *run) ([]Row, error) {
	defer calmGC()()
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, identity("self", self())); err != nil {
		return nil, err
	}
	n, err := newNode(ctx, r, p, "node-0")
	if err != nil {
		return nil, err
	}
	defer n.close()
	if _, err := n.start(ctx, r); err != nil {
		return nil, err
	}
	resident, err := settledRSS(n.pid)
	if err != nil {
		return nil, err
	}
	rows := []Row{atMost("idle agent, resident memory", resident/1e6, "MB", 25).beside("SPIRE 1.15.3 agent", 63)}
	warm, err := warmSVID(ctx, r, n)
	if err != nil {
		return rows, err
	}
	declared, err := entryToSVID(ctx, r, p, n)
	return append(append(rows, warm...), declared...), err
}

func warmSVID(ctx context.Context, r *run, n *node) ([]Row, error) {
	floor, bareServer, err := startBare(ctx, r, n)
	if err != nil {
		return nil, err
	}
	defer bareServer.stop()
	var ours, bare times
	for i := range of(r, 1000, 200) + 20 {
		took, err := firstSVID(ctx, n.socket)
		if err != nil {
			return nil, err
		}
		least, err := firstSVID(ctx, floor)
		if err != nil {
			return nil, err
		}
		if i >= 20 { // warm
			ours, bare = append(ours, took), append(bare, least)
		}
	}
	const what = "warm first SVID, connect to answer"
	return []Row{
		atMost(what+", p50", ours.p50(), "ms", 0.7).beside("bare gRPC, same bytes", bare.p50()),
		atMost(what+", p99", ours.p99(), "ms", 2).beside("bare gRPC, same bytes", bare.p99()),
	}, nil
}

// entryToSVID is from the operator's request to the new SVID on a stream
// that was open before, less the two commits in between (the entry's and the
// journal's).
func entryToSVID(ctx context.Context, r *run, p *plane, n *node) ([]Row, error) {
	s, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(p.dir, "twin")})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stream, end, err := workloadStream(ctx, n.socket)
	if err != nil {
		return nil, err
	}
	defer end()
	answers := make(chan *workload.X509SVIDResponse, 16)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer end()
	reading.Go(func() {
		defer close(answers)
		for {
			res, err := stream.Recv()
			if err != nil {
				return
			}
			answers <- res
		}
	})
	var total, commits times
	for i := range of(r, 100, 20) {
		name := fmt.Sprintf("new-%d", i)
		doc := identity(name, self())
		start := time.Now()
		if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: store.Prefix + "bench.test/bench/twin/" + name, Value: []byte(doc)}}}); err != nil {
			return nil, err
		}
		commits = append(commits, time.Since(start))
		start = time.Now()
		if err := p.apply(ctx, doc); err != nil {
			return nil, err
		}
		at, err := has(answers, idOf(name), true)
		if err != nil {
			return nil, err
		}
		total = append(total, at.Sub(start))
		if _, err := p.admin.Delete(ctx, &adminv1.DeleteRequest{Namespace: "bench", Kind: "WorkloadIdentity", Names: []string{name}}); err != nil {
			return nil, err
		}
		if _, err := has(answers, idOf(name), false); err != nil {
			return nil, err
		}
	}
	r.say("entry to SVID: p50 %.2f ms, p99 %.2f ms; a commit p50 %.2f ms, p99 %.2f ms", total.p50(), total.p99(), commits.p50(), commits.p99())
	const what = "new entry declared, SVID at an open stream, beyond two commits"
	two := 2 * commits.p50()
	return []Row{
		fact(what+", p50", total.p50()-two, "ms").beside("two commits", two),
		atMost(what+", p99", total.p99()-two, "ms", 5).beside("two commits", two),
	}, nil
}

// has waits for an answer with, or without, that identity.
func has(answers <-chan *workload.X509SVIDResponse, id string, want bool) (time.Time, error) {
	deadline := time.After(10 * time.Second)
	for {
		select {
		case res, open := <-answers:
			if !open {
				return time.Time{}, errors.New("the Workload API's stream ended")
			}
			at, found := time.Now(), false
			for _, s := range res.GetSvids() {
				found = found || s.GetSpiffeId() == id
			}
			if found == want {
				return at, nil
			}
		case <-deadline:
			return time.Time{}, fmt.Errorf("no answer with %s %v within 10 s", id, want)
		}
	}
}
