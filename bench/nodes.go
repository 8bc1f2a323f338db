package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	attestnode "github.com/legation-io/legation/internal/attest/node"
)

// nodes are attested agents' links to one plane: real connections, real
// trust streams, all in this process.
type nodes struct {
	links  []*upstream.Link
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// configured counts the resources that subjects were given.
	configured atomic.Int64
}

// attachNodes attests the nodes numbered first and on, and waits until all
// are synced.
func attachNodes(ctx context.Context, p *plane, first, n int) (*nodes, error) {
	ns := &nodes{}
	ctx, ns.cancel = context.WithCancel(ctx)
	failed := make(chan error, n)
	for i := range n {
		name := fmt.Sprintf("node-%d", first+i)
		token, err := p.admin.CreateToken(ctx, &adminv1.CreateTokenRequest{Node: name})
		if err != nil {
			ns.close()
			return nil, err
		}
		link := upstream.New(upstream.Params{
			Servers: []string{p.address}, TrustDomain: benchDomain, BundleHash: token.GetBundleHash(),
			Prover: attestnode.Proof(attestnode.JoinToken, []byte(token.GetToken())), Version: "bench",
			OnConfig: func(_ string, u upstream.ConfigUpdate) error {
				for _, c := range u.Changes {
					if c.Resource != nil && u.Refusal == nil {
						ns.configured.Add(1)
					}
				}
				return nil
			},
		})
		ns.links = append(ns.links, link)
		ns.wg.Go(func() { failed <- link.Run(ctx) })
		if err := await(ctx, link, 20*time.Second, func(v *upstream.View) bool { return v.Connected && v.Synced }); err != nil {
			ns.close()
			select {
			case why := <-failed:
				err = errors.Join(err, why)
			default:
			}
			return nil, fmt.Errorf("attach %s: %w", name, err)
		}
	}
	return ns, nil
}

func (ns *nodes) close() {
	if ns != nil {
		ns.cancel()
		ns.wg.Wait()
	}
}

// await waits until the link's view is as wanted.
func await(ctx context.Context, l *upstream.Link, d time.Duration, ok func(*upstream.View) bool) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		v, changed := l.View()
		if ok(v) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("not within %s; connected %v, synced %v, %d entries, %d revocations %s", d, v.Connected, v.Synced, len(v.Entries), len(v.Revocations), v.LastError)
		}
	}
}

// lastOf calls change, waits until all links' views are as wanted, and
// returns when the last was.
func (ns *nodes) lastOf(ctx context.Context, ok func(*upstream.View) bool, change func() error) (last time.Time, err error) {
	at := make([]time.Time, len(ns.links))
	errs := make([]error, len(ns.links)+1)
	var waiting sync.WaitGroup
	for i, l := range ns.links {
		waiting.Go(func() {
			errs[i] = await(ctx, l, 10*time.Second, ok)
			at[i] = time.Now()
		})
	}
	errs[len(ns.links)] = change()
	waiting.Wait()
	for _, t := range at {
		if t.After(last) {
			last = t
		}
	}
	for i, err := range errs {
		if err != nil {
			return last, fmt.Errorf("agent %d of %d: %w", i, len(ns.links), err)
		}
	}
	return last, nil
}
