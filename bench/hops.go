package main

import (
	"context"
	"fmt"
	"time"
)

// hops is the latency that a pair of sidecars adds: the same requests with
// and without them, in turns.
func hops(ctx context.Context, r *run) ([]Row, error) {
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
	p, err := ourPair(ctx, r, keys, b.address)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var rows []Row
	for _, l := range []struct {
		name        string
		perSecond   int
		connections int
		total       time.Duration
		p99         float64 // budget, ms
	}{
		{"idle (50/s)", 50, 1, of(r, 24*time.Second, 3*time.Second), 1},
		{"at 1,000/s", 1000, connections, of(r, 10*time.Second, 2*time.Second), 3},
	} {
		with, without, err := inTurns(ctx, p.enter, b.address, "/", "/", l.perSecond, l.connections, l.total)
		if err != nil {
			return rows, err
		}
		name := "added latency per hop of a sidecar pair, " + l.name
		rows = append(rows, added(name+", p50", with.p50(), without.p50(), 0.5), added(name+", p99", with.p99(), without.p99(), l.p99))
	}
	const chain = 6
	with, without, err := inTurns(ctx, p.enter, b.address, chainPath(chain-1, p.enter), chainPath(chain-1, b.address), 50, 1, of(r, 10*time.Second, 2*time.Second))
	if err != nil {
		return rows, err
	}
	name := fmt.Sprintf("added latency of a chain of %d hops, idle (50/s)", chain)
	return append(rows,
		fact(name+", p50", with.p50()-without.p50(), "ms").beside("direct", without.p50()),
		fact(name+", p99", with.p99()-without.p99(), "ms").beside("direct", without.p99())), nil
}

// added is what with has more than without.
func added(name string, with, without, budget float64) Row {
	return atMost(name, with-without, "ms", budget).beside("direct", without)
}

// inTurns loads the pair and the backend itself in turns of half a second.
func inTurns(ctx context.Context, enter, direct, enterPath, directPath string, perSecond, n int, total time.Duration) (with, without times, err error) {
	a, b := newCaller(enter, enterPath, n), newCaller(direct, directPath, n)
	defer a.close()
	defer b.close()
	const turn = 500 * time.Millisecond
	for i := range int(total/turn) + 2 {
		c, into := a, &with
		if i%2 == 1 {
			c, into = b, &without
		}
		got, err := c.load(ctx, perSecond, turn)
		if err != nil {
			return nil, nil, err
		}
		if i >= 2 { // the first turns connect
			*into = append(*into, got...)
		}
	}
	return with, without, nil
}
