package mtls

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/handshake"
)

// pending bounds handshakes under way. When one more begins and all places
// are taken, the oldest is ended: an honest handshake takes milliseconds, a
// silent connection waits.
type pending struct {
	max int // 0 is no bound

	mu      sync.Mutex // guards what follows
	busy    list.List  // of *conn, oldest first
	waiting int        // done, and not yet taken by Accept
	freed   chan struct{}
}

// begin takes a place; leave gives it back. It waits only while every place
// is taken by a connection that waits for Accept.
func (p *pending) begin(ctx context.Context, c *conn) (*list.Element, error) {
	for {
		p.mu.Lock()
		if p.max == 0 || p.busy.Len()+p.waiting < p.max {
			e := p.busy.PushBack(c)
			p.mu.Unlock()
			return e, nil
		}
		if oldest := p.busy.Front(); oldest != nil {
			p.busy.Remove(oldest)
			e := p.busy.PushBack(c)
			p.mu.Unlock()
			oldest.Value.(*conn).shut(spiffeid.ID{}, &handshake.Refusal{Cause: handshake.Canceled, Err: fmt.Errorf("%d handshakes were under way, and this was the oldest", p.max)})
			return e, nil
		}
		p.mu.Unlock()
		if err := p.room(ctx); err != nil {
			return nil, err
		}
	}
}

// room waits while every place is taken by a connection that waits for Accept.
func (p *pending) room(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.max == 0 || p.waiting < p.max {
			p.mu.Unlock()
			return nil
		}
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave ends a handshake; it may have been ended by another already.
func (p *pending) leave(e *list.Element) {
	p.mu.Lock()
	p.busy.Remove(e) // does nothing when it is no longer in
	p.freeLocked()
	p.mu.Unlock()
}

// hold turns a place into one that waits for Accept, and release gives it back.
func (p *pending) hold() {
	p.mu.Lock()
	p.waiting++
	p.mu.Unlock()
}

func (p *pending) release() {
	p.mu.Lock()
	p.waiting--
	p.freeLocked()
	p.mu.Unlock()
}

func (p *pending) freeLocked() {
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}
