package ca

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/legation-io/legation/internal/fault"
)

const (
	retryAfter = 500 * time.Millisecond
	// tidyEvery is how often expired serials leave the CRL: each time costs a
	// push to everybody.
	tidyEvery = time.Hour
)

// Run follows what other replicas publish, signs heartbeats, and finishes
// revocations that a killed replica left without their last serials, until
// ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.runWatch(ctx) })
	g.Go(func() error { return a.runHeartbeat(ctx) })
	g.Go(func() error { return a.runSweep(ctx) })
	return g.Wait()
}

func (a *Authority) runWatch(ctx context.Context) error {
	for {
		a.mu.Lock()
		read := a.known.read
		a.mu.Unlock()
		watchCtx, stop := context.WithCancel(ctx)
		var err error
		for batch := range a.store.Watch(watchCtx, a.objectKey()+"/", read) {
			if err = a.apply(batch, true); err != nil {
				break
			}
		}
		stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.log.Warn("the watch of CRL and revocations ended; reading them again", "error", err)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retryAfter):
			}
			if err := a.reload(ctx); err == nil {
				break
			} else if ctx.Err() == nil {
				a.log.Error("cannot read CRL and revocations; issuing and revoking go on with what is known", "error", err)
			}
		}
	}
}

func (a *Authority) runHeartbeat(ctx context.Context) error {
	tick := time.NewTicker(a.beatEvery)
	defer tick.Stop()
	for {
		state, changed := a.State()
		due := state.Heartbeat.GetCrlNumber() != state.CRL.Number
		if !due {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed: // perhaps a new CRL
				continue
			case <-tick.C:
			}
		}
		if err := a.beat(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.log.Error("cannot sign that the CRL is current; agents will alarm", "error", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
}

// runSweep looks once at each block that appears, and tidies the CRL.
func (a *Authority) runSweep(ctx context.Context) error {
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	swept := make(map[string]bool)
	for {
		state, changed := a.State()
		for id, r := range state.Revocations {
			if !r.GetBlocksIssuance() {
				delete(swept, id)
			} else if !swept[id] {
				if err := a.sweep(ctx, id); err == nil {
					swept[id] = true
				} else if ctx.Err() == nil {
					a.log.Error("cannot finish a revocation; trying again", "revocation", id, "error", err)
				}
			}
		}
		for id := range swept {
			if state.Revocations[id] == nil {
				delete(swept, id)
			}
		}
		retry := (<-chan time.Time)(nil)
		for id, r := range state.Revocations {
			if r.GetBlocksIssuance() && !swept[id] {
				retry = time.After(retryAfter)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-retry:
		case <-tidy.C:
			if err := a.tidy(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("cannot take expired serials out of the CRL; trying again in an hour", "error", err)
			}
		}
	}
}

// tidy signs a shorter CRL when a serial's certificate expired longer ago
// than the grace.
func (a *Authority) tidy(ctx context.Context) error {
	if _, err := a.guard.Check(); err != nil {
		return err
	}
	err := a.change(ctx, func(k *known, now time.Time) (*change, error) {
		gone := slices.ContainsFunc(k.crl.Entries, func(e crlEntry) bool { return e.NotAfter.Add(a.life.CRLGrace).Before(now) })
		if !gone {
			return nil, nil
		}
		return &change{}, nil
	})
	if fault.Is(err, fault.Unavailable) {
		return nil // other replicas tidied meanwhile
	}
	return err
}
