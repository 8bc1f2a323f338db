package main

import (
	"context"
	"time"
)

// pairs is the CPU that a pair of Envoys needs per request: ours beside a
// hand-written minimal mTLS pair and beside one that parses HTTP, all three
// running, loaded in turns.
func pairs(ctx context.Context, r *run) ([]Row, error) {
	defer calmGC()()
	keys, err := newPKI()
	if err != nil {
		return nil, err
	}
	b, err := startBackend()
	if err != nil {
		return nil, err
	}
	defer b.close()
	var all []*pair
	for _, start := range []func() (*pair, error){
		func() (*pair, error) { return ourPair(ctx, r, keys, b.address) },
		func() (*pair, error) { return peerPair(r, keys, "hand-written", tcpFilter, b.address) },
		func() (*pair, error) { return peerPair(r, keys, "always HTTP", httpFilter, b.address) },
	} {
		p, err := start()
		if err != nil {
			return nil, err
		}
		defer p.close()
		all = append(all, p)
	}
	cpu := make([]time.Duration, len(all))
	requests := make([]int, len(all))
	rounds, turn := of(r, 5, 2), of(r, 2*time.Second, 1500*time.Millisecond)
	for round := range rounds + 1 {
		for i, p := range all {
			d := turn
			if round == 0 {
				d = 300 * time.Millisecond // warm
			}
			used, n, err := p.loaded(ctx, d)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				cpu[i], requests[i] = cpu[i]+used, requests[i]+n
			}
		}
	}
	per := func(i int) float64 { return cpu[i].Seconds() / float64(requests[i]) * 1e4 }
	const what = "Envoy pair at 1,000/s, CPU per 10,000 requests"
	return []Row{
		fact(what, per(0), "s").beside("hand-written mTLS pair", per(1)).ratioAtMost(1.05),
		fact(what+", no L7 asked", per(0), "s").beside("always-HTTP pair", per(2)).ratioAtMost(0.45),
	}, nil
}

// loaded sends 1,000 requests a second through the pair and returns the CPU
// of its two Envoys.
func (p *pair) loaded(ctx context.Context, d time.Duration) (time.Duration, int, error) {
	c := newCaller(p.enter, "/", connections)
	defer c.close()
	if _, err := c.load(ctx, 400, 100*time.Millisecond); err != nil { // handshakes are another matter
		return 0, 0, err
	}
	before, err := cpuOf(p.pids...)
	if err != nil {
		return 0, 0, err
	}
	answers, err := c.load(ctx, 1000, d)
	if err != nil {
		return 0, 0, err
	}
	after, err := cpuOf(p.pids...)
	return after - before, len(answers), err
}
