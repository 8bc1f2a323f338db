package mtls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
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
	core *core
	wake chan struct{}
	done sync.WaitGroup // the watcher

	mu       sync.Mutex // guards what follows
	conns    map[*conn]struct{}
	watching bool
	earliest time.Time // the next expiry that the watcher knows of

	judging sync.Mutex // one judges at a time; guards conn.request.Path
}

// add keeps track of a connection that was verified under trust. The error
// says why it is no longer believed since.
func (l *live) add(c *conn, trust *chaincheck.Trust) error {
	l.mu.Lock()
	if c.closed.Load() {
		l.mu.Unlock()
		return errors.New("it was closed meanwhile")
	}
	l.conns[c] = struct{}{}
	if !l.watching {
		l.watching = true
		l.done.Add(1)
		go l.watch(trust)
	} else if at, ends := l.end(c); ends && at.Before(l.earliest) {
		l.nudge()
	}
	l.mu.Unlock()
	// Either the watcher sees c when it judges by what came after trust, or
	// what came after is seen here.
	if newest, _, err := l.core.source.Current(); err == nil && newest.Trust != trust {
		l.judging.Lock()
		defer l.judging.Unlock()
		return l.judgeLocked(c, newest.Trust)
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

// end is when a connection has outlived its certificate for too long.
func (l *live) end(c *conn) (time.Time, bool) {
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
			l.judgeAll(judged)
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
		at, ends := l.end(c)
		switch {
		case !ends:
		case now.After(at):
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

// judgeAll judges every connection by trust.
func (l *live) judgeAll(trust *chaincheck.Trust) {
	l.judging.Lock()
	defer l.judging.Unlock()
	for _, c := range l.all() {
		if err := l.judgeLocked(c, trust); err != nil {
			l.close(c, err)
		}
	}
}

func (l *live) close(c *conn, why error) {
	if c.shut(c.request.Peer.ID, why) {
		l.core.log.Warn("connection closed: its peer is believed no longer", "side", l.core.side,
			"peer", c.request.Peer.ID.String(), "remote", c.RemoteAddr().String(), "error", why)
	}
}

// judgeLocked says why a connection that was verified under another trust is
// believed no longer. Its path is known, so that mostly nothing is computed.
func (l *live) judgeLocked(c *conn, trust *chaincheck.Trust) error {
	k, now := l.core, l.core.now()
	if k.authorize.roots != nil {
		return nil // verified by name, under roots that do not change
	}
	id := c.request.Peer.ID
	if anchor := c.request.Path[len(c.request.Path)-1]; !anchors(trust, c, anchor.Raw) {
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
		return &chaincheck.Error{Cause: chaincheck.Revoked, Subject: id.String(), Detail: d.String(), Certificate: c.request.Path[0]}
	}
	if k.revocation != chaincheck.Off {
		for n, cert := range c.request.Path[:len(c.request.Path)-1] {
			if r := trust.CRLs.Lookup(cert, c.request.Path[n+1], now, nil); r.Status == chaincheck.StatusRevoked {
				return &chaincheck.Error{Cause: chaincheck.Revoked, Subject: id.String(), Detail: r.String(), Certificate: cert}
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), authorizeTime)
	defer cancel()
	return k.authorize.authorize(ctx, &c.request)
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

// recheck judges all connections again although the Source did not change.
func (l *live) recheck() {
	if snapshot, _, err := l.core.source.Current(); err == nil {
		l.judgeAll(snapshot.Trust)
	}
}

// closeAll ends every connection and waits for the watcher.
func (l *live) closeAll(why error) {
	for _, c := range l.all() {
		c.shut(c.request.Peer.ID, why)
	}
	l.done.Wait()
}
