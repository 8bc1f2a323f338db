package svid

import (
	"context"
	"sync"
)

// Follow calls each with every Update until ctx ends, one at a time; after a
// first Next with each that is newer. What
// verifies peers does not wait for a certificate: when a CRL or root changes
// while one is being signed, each is called with the SVIDs of before. Where
// nothing can be had (Next gives an error), each is called with the Trust
// alone and that error, and again when that changes.
func (s *Subscription) Follow(ctx context.Context, each func(u *Update, err error)) {
	type news struct {
		update *Update
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	updates := make(chan news)
	last := news{update: s.last} // what Next gave before
	waiting.Go(func() {
		for {
			u, err := s.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case updates <- news{u, err}:
			}
			if err == nil {
				continue
			}
			select { // an entry may appear, a block be lifted, a signature come
			case <-ctx.Done():
				return
			case <-s.woken:
			}
		}
	})
	for {
		trust, trusted := s.m.Trust()
		if last.update != nil && last.update.Trust != trust {
			last.update = &Update{SVIDs: last.update.SVIDs, Trust: trust, Pending: last.update.Pending}
			each(last.update, last.err)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case last = <-updates:
			if last.err != nil {
				last.update = &Update{Trust: trust}
			}
			each(last.update, last.err)
		case <-trusted:
		}
	}
}
