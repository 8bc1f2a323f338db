package mtls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
)

const (
	// clockCheck is how often expiry is looked at again, so that a wall clock
	// that steps is noticed.
	clockCheck = time.Minute
	// authorizeTime bounds the program's own authorisers when they are asked
	// again.
	authorizeTime = 10 * time.Second
)

// live is the open connections of one side. A goroutine watches the Source
// while there are any.
type live struct {
	core     *core
	wake     chan struct{}
	done     sync.WaitGroup // the watcher, and who asks authorisers for it
	rechecks atomic.Uint64  // how often what the authoriser decides by changed
	ended    atomic.Uint64  // connections whose peer was believed no longer

	mu       sync.Mutex // guards what follows
	conns    map[*conn]struct{}
	watching bool
	closed   bool      // for good: nothing is added
	earliest time.Time // the next expiry that the watcher knows of
	asking   bool      // authorisers, for the watcher
	askAgain bool      // the trust changed since

	judging sync.Mutex // guards conn.request.Path; never held while an authoriser is asked
}

// add keeps track of a connection that was verified under trust and authorised
// after so many rechecks. The error says why it is no longer believed since.
func (l *live) add(c *conn, trust *chaincheck.Trust, rechecks uint64) error {
	l.mu.Lock()
	if c.closed.Load() {
		l.mu.Unlock()
		return errors.New("it was closed meanwhile")
	}
	if l.closed {
		l.mu.Unlock()
		return errDialerClosed
	}
	l.conns[c] = struct{}{}
	if !l.watching {
		l.watching = true
		l.done.Add(1)
		go l.watch(trust)
	} else if c.expires.Before(l.earliest) {
		l.nudge()
	}
	l.mu.Unlock()
	// Either the watcher, or recheck, sees c when it judges by what came after,
	// or what came after is seen here.
	newest, _, err := l.core.source.Current()
	changed := err == nil && newest.Trust != trust
	if changed {
		if err := l.believe(c, newest.Trust); err != nil {
			return err
		}
	}
	if changed || l.rechecks.Load() != rechecks {
		return l.ask(c)
	}
	return nil
}

func (l *live) remove(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	if len(l.conns) == 0 {
		l.nudge()
	}
	l.mu.Unlock()
}

func (l *live) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next is when something happens to a connection by itself: its certificate
// expires, or has done so for too long; false when nothing will.
func (l *live) next(c *conn) (time.Time, bool) {
	if !c.expired.Load() {
		return c.expires, true
	}
	return c.expires.Add(l.core.grace), l.core.grace > 0
}

// all returns the open connections.
func (l *live) all() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		out = append(out, c)
	}
	return out
}

// watch judges all connections whenever the Source has another trust, and
// ends when none is left. judged is the trust that the first was verified
// under.
func (l *live) watch(judged *chaincheck.Trust) {
	defer l.done.Done()
	timer := time.NewTimer(clockCheck)
	defer timer.Stop()
	for {
		snapshot, changed, err := l.core.source.Current()
		if err == nil && snapshot.Trust != judged {
			judged = snapshot.Trust
			l.believeAll(judged)
			l.askSoon()
		}
		next, some := l.expire()
		if !some {
			return
		}
		timer.Reset(next)
		select {
		case <-changed:
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// expire ends what has outlived its certificate and says when to look again;
// false when no connection is left.
func (l *live) expire() (time.Duration, bool) {
	now := l.core.now()
	var over []*conn
	l.mu.Lock()
	l.earliest = now.Add(clockCheck)
	for c := range l.conns {
		if !c.expired.Load() && now.After(c.expires) {
			c.expired.Store(true)
		}
		at, some := l.next(c)
		switch {
		case !some:
		case c.expired.Load() && now.After(at):
			over = append(over, c)
		case at.Before(l.earliest):
			l.earliest = at
		}
	}
	next := l.earliest.Sub(now)
	if len(l.conns) == 0 {
		l.watching = false
		l.mu.Unlock()
		return 0, false
	}
	l.mu.Unlock()
	for _, c := range over {
		l.close(c, fmt.Errorf("its certificate expired %s, and the grace of %s is over", c.expires.UTC().Format(time.RFC3339), l.core.grace))
	}
	return max(next, time.Millisecond), true
}

// believeAll closes the connections whose peer is believed no longer.
func (l *live) believeAll(trust *chaincheck.Trust) {
	for _, c := range l.all() {
		if err := l.believe(c, trust); err != nil {
			l.close(c, err)
		}
	}
}

// askAll closes the connections whose peer is authorised no longer.
func (l *live) askAll() {
	for _, c := range l.all() {
		if err := l.ask(c); err != nil {
			l.close(c, err)
		}
	}
}

// askSoon is askAll beside the watcher, whom no program's authoriser may hold
// up.
func (l *live) askSoon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.askAgain = l.asking; l.asking {
		return
	}
	l.asking = true
	l.done.Go(func() {
		for again := true; again; {
			l.askAll()
			l.mu.Lock()
			again, l.askAgain = l.askAgain, false
			l.asking = again
			l.mu.Unlock()
		}
	})
}

func (l *live) close(c *conn, why error) {
	if c.shut(c.request.Peer.ID, why) {
		l.ended.Add(1)
		l.core.log.Warn("connection closed: its peer is believed no longer", "side", l.core.side,
			"peer", c.request.Peer.ID.String(), "remote", c.RemoteAddr().String(), "error", why)
	}
}

// believe says why the peer of a connection that was verified under another
// trust is believed no longer. Its path is known, so that mostly nothing is
// computed.
func (l *live) believe(c *conn, trust *chaincheck.Trust) error {
	l.judging.Lock()
	defer l.judging.Unlock()
	k, now := l.core, l.core.now()
	id, name := c.request.Peer.ID, c.request.Peer.ID.String()
	if k.authorize.roots != nil {
		name = c.request.Host // verified by name, under roots that do not change
	} else if anchor := c.request.Path[len(c.request.Path)-1]; !anchors(trust, c, anchor.Raw) {
		// Perhaps another root leads to it. Its dates are a matter of grace,
		// its revocation follows.
		at := now
		if c.expires.Before(at) {
			at = c.expires
		}
		result, err := chaincheck.Verify(chaincheck.Params{
			Chain: c.chain, Roots: trust.Roots, Revocation: chaincheck.Off, Usage: k.usage, Now: at, MaxDepth: k.depth,
		})
		if err != nil {
			return err
		}
		c.request.Path = result.Path
	}
	if d, denied := trust.Denied.Lookup(id, c.request.Path); denied {
		return &chaincheck.Error{Cause: chaincheck.Revoked, Subject: name, Detail: d.String(), Certificate: c.request.Path[0]}
	}
	if k.revocation != chaincheck.Off {
		for n, cert := range c.request.Path[:len(c.request.Path)-1] {
			if r := trust.CRLs.Lookup(cert, c.request.Path[n+1], now, nil); r.Status == chaincheck.StatusRevoked {
				return &chaincheck.Error{Cause: chaincheck.Revoked, Subject: name, Detail: r.String(), Certificate: cert}
			}
		}
	}
	return nil
}

// ask says why the peer of a connection is authorised no longer.
func (l *live) ask(c *conn) error {
	l.judging.Lock()
	request := c.request
	l.judging.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), authorizeTime)
	defer cancel()
	return l.core.authorize.authorize(ctx, &request)
}

// anchors tells whether a root is still one of the peer's trust domain.
func anchors(trust *chaincheck.Trust, c *conn, raw []byte) bool {
	for _, root := range trust.Roots[c.request.Peer.ID.TrustDomain()] {
		if bytes.Equal(root.Raw, raw) {
			return true
		}
	}
	return false
}

// recheck judges all connections again although the Source did not change;
// authorisers are asked also while the Source has nothing.
func (l *live) recheck() {
	l.rechecks.Add(1)
	if snapshot, _, err := l.core.source.Current(); err == nil {
		l.believeAll(snapshot.Trust)
	}
	l.askAll()
}

var errDialerClosed = fmt.Errorf("its Dialer was closed: %w", net.ErrClosed)

// closeAll ends every connection, those to come as well, and waits for the
// watcher: none begins after it.
func (l *live) closeAll() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for _, c := range l.all() {
		c.shut(c.request.Peer.ID, errDialerClosed)
	}
	l.done.Wait()
}

func (l *live) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
