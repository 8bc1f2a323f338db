package main

import (
	"context"
	"fmt"
)

// agentStart is from the process's start to its first SVID served: with a
// fresh join token, and again from the sealed cache.
func agentStart(ctx context.Context, r *run) ([]Row, error) {
	defer calmGC()()
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, identity("self", self())); err != nil {
		return nil, err
	}
	var fresh, cached times
	for i := range of(r, 15, 5) {
		err := func() error {
			n, err := newNode(ctx, r, p, fmt.Sprintf("start-%d", i))
			if err != nil {
				return err
			}
			defer n.close()
			for _, into := range []*times{&fresh, &cached} {
				took, err := n.start(ctx, r)
				if err != nil {
					return err
				}
				*into = append(*into, took)
				if err := n.stop(); err != nil {
					return err
				}
			}
			return nil
		}()
		if err != nil {
			return nil, err
		}
	}
	return []Row{
		atMost("agent start to attested and serving, p50", fresh.p50(), "ms", 100),
		fact("agent start to attested and serving, worst", fresh.percentile(100), "ms"),
		fact("agent restart from its cache to serving, p50", cached.p50(), "ms"),
	}, nil
}
