package svid

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
)

const (
	// maxJWTs bounds the tokens held: audiences are chosen by callers.
	maxJWTs = 1000
	// maxEntryJWTs are those of one entry: its programs push out their own.
	maxEntryJWTs = maxJWTs / 4
	// What the programs of one entry may have signed: half of what the control
	// plane lets the node ask for, so that no one of them can have it all.
	jwtsPerSecond, jwtsAtOnce = 50, 250
)

type jwtKey struct {
	slotKey
	id       string
	audience string
	ext      string
}

// jwtCache forgets what was not used for longest.
type jwtCache struct {
	mu     sync.Mutex // guards what follows
	tokens map[jwtKey]*jwtEntry
	used   list.List      // of jwtKey, last used first
	held   map[string]int // by entry
}

// ErrPlain is in the chain of the error of a control plane that does not know
// further claims.
var ErrPlain = errors.New("the control plane does not sign further claims; upgrade it")

// jwtEntry is a token, or the asking for one, which others wait for.
type jwtEntry struct {
	place   *list.Element
	asked   chan struct{} // closed when the asking is over
	token   string
	renewAt time.Time
	expires time.Time
	err     error
}

// JWT returns a JWT-SVID of the entry for the audience with the further claims
// ext (they become the claim "ext"; may be nil), the same one until
// half of its life has passed; an older one is still given out while the
// control plane does not answer, until it expires. fault.Denied when the
// entry is not this node's any more or its identity is blocked.
func (m *Manager) JWT(ctx context.Context, entry *nodev1.Entry, instance Instance, audience []string, ext map[string]string) (token string, expires time.Time, err error) {
	if len(audience) == 0 || slices.Contains(audience, "") {
		return "", time.Time{}, fault.New(fault.Invalid, "a JWT-SVID needs an audience, and none that is empty")
	}
	index := m.index.Get()
	now := index.view.Entries[entry.GetName()]
	switch {
	case now == nil || now.SpiffeId != entry.SpiffeId:
		return "", time.Time{}, fault.New(fault.Denied, "entry %s no longer gives %s on this node", entry.GetName(), entry.GetSpiffeId())
	case now.Blocked:
		return "", time.Time{}, fault.New(fault.Denied, "identity %s is revoked and blocked until lifted (entry %s)", now.SpiffeId, now.Name)
	}
	audience = slices.Clone(audience)
	slices.Sort(audience)
	audience = slices.Compact(audience)
	key := jwtKey{slotKey{entry.Name, instance}, entry.SpiffeId, fmt.Sprintf("%q", audience), fmt.Sprintf("%q", ext)}

	mine, old, wall := &jwtEntry{asked: make(chan struct{})}, (*jwtEntry)(nil), m.p.Clock.Now()
	c := &m.jwts
	c.mu.Lock()
	if e := c.tokens[key]; e != nil {
		select {
		case <-e.asked:
			if wall.Before(e.renewAt) {
				c.used.MoveToFront(e.place)
				c.mu.Unlock()
				m.metrics.hits.Inc()
				return e.token, e.expires, nil
			}
			old = e
		default:
			c.mu.Unlock()
			return e.wait(ctx, m)
		}
	}
	c.putLocked(key, mine)
	c.mu.Unlock()
	m.metrics.misses.Inc()

	// The asking outlives a caller that gives up: others wait for it.
	askCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signTimeout)
	defer cancel()
	var r *nodev1.SignJWTResponse
	if delay, ok := m.jwtRate.Take(entry.Name, 1); ok {
		r, err = m.p.Signer.SignJWT(askCtx, &nodev1.SignJWTRequest{
			TrustDomain: index.view.TrustDomain, Entry: entry.Name, SpiffeId: entry.SpiffeId, Audience: audience, Instance: string(instance), Ext: ext,
		})
	} else {
		err = limit.Error("JWT-SVIDs of entry "+entry.Name, delay)
	}
	if err == nil && len(ext) > 0 && !r.GetExt() {
		err = fault.New(fault.Unavailable, "sign a JWT-SVID with further claims: %w", ErrPlain)
	}
	wall = m.p.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(mine.asked)
	if err == nil {
		mine.token, mine.expires = r.Token, time.Unix(r.ExpiresAtUnix, 0)
		mine.renewAt = wall.Add(mine.expires.Sub(wall) / 2)
		if !wall.Before(mine.expires) {
			err = fault.New(fault.Unavailable, "the JWT-SVID for %s ended before it arrived; check the clock of this machine", entry.SpiffeId)
		}
	}
	if err == nil {
		return mine.token, mine.expires, nil
	}
	mine.err = err
	current := c.tokens[key] == mine
	if current {
		c.dropLocked(key, mine)
	}
	if old != nil && wall.Before(old.expires) && retriable(err) {
		mine.err = nil
		mine.token, mine.expires = old.token, old.expires
		if current {
			c.putLocked(key, old)
		}
		return old.token, old.expires, nil
	}
	return "", time.Time{}, err
}

func retriable(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Limited, fault.Internal:
		return true
	}
	return false
}

// wait is for those who find another one asking.
func (e *jwtEntry) wait(ctx context.Context, m *Manager) (string, time.Time, error) {
	select {
	case <-e.asked:
		m.metrics.hits.Inc()
		return e.token, e.expires, e.err
	case <-ctx.Done():
		return "", time.Time{}, ctx.Err()
	}
}

func (c *jwtCache) putLocked(key jwtKey, e *jwtEntry) {
	if c.tokens == nil {
		c.tokens, c.held = map[jwtKey]*jwtEntry{}, map[string]int{}
	}
	if old := c.tokens[key]; old != nil {
		c.dropLocked(key, old)
	}
	c.tokens[key], e.place = e, c.used.PushFront(key)
	c.held[key.entry]++
	own := c.held[key.entry] > maxEntryJWTs
	for place := c.used.Back(); own || len(c.tokens) > maxJWTs; place = place.Prev() {
		if last := place.Value.(jwtKey); !own || last.entry == key.entry {
			c.dropLocked(last, c.tokens[last])
			return // one came, one goes
		}
	}
}

func (c *jwtCache) dropLocked(key jwtKey, e *jwtEntry) {
	c.used.Remove(e.place)
	delete(c.tokens, key)
	if c.held[key.entry]--; c.held[key.entry] == 0 {
		delete(c.held, key.entry)
	}
}

func (c *jwtCache) forget(instance Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.tokens {
		if k.instance == instance {
			c.dropLocked(k, e)
		}
	}
}
