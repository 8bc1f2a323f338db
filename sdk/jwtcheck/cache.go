package jwtcheck

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"
)

// cache remembers tokens that were verified, never one that was not: a
// stranger cannot fill it. Tokens themselves are not kept, so that a dump of
// the memory gives no one a bearer token. It has two halves; when the young
// one is full, it becomes the old one, and the old one is forgotten.
type cache struct {
	limit int // of both halves; negative none

	mu         sync.RWMutex // guards what follows
	young, old map[[sha256.Size]byte]*entry
}

// maxCachedClaims bounds an entry, in bytes of JSON, which take up to twenty
// times as much when decoded: an authority that is trusted for its own domain
// may sign anything.
const maxCachedClaims = 6 << 10

type entry struct {
	token *Token
	key   publicKey
	// keys in which key was last seen to be.
	keys atomic.Pointer[Keys]
}

// get finds a token whose key is still in keys.
func (c *cache) get(sum [sha256.Size]byte, keys *Keys) *entry {
	c.mu.RLock()
	e, young := c.young[sum]
	if !young {
		e = c.old[sum]
	}
	c.mu.RUnlock()
	if e == nil {
		return nil
	}
	if e.keys.Load() != keys {
		if !keys.has(e.token.ID.TrustDomain(), e.token.KeyID, e.key) {
			c.drop(sum)
			return nil
		}
		e.keys.Store(keys)
	}
	if !young {
		c.add(sum, e)
	}
	return e
}

func (c *cache) put(sum [sha256.Size]byte, keys *Keys, t *Token, key publicKey) {
	e := &entry{token: t, key: key}
	e.keys.Store(keys)
	c.add(sum, e)
}

func (c *cache) add(sum [sha256.Size]byte, e *entry) {
	if c.limit < 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= max(1, c.limit/2) {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = map[[sha256.Size]byte]*entry{}
	}
	delete(c.old, sum)
	c.young[sum] = e
}

func (c *cache) drop(sum [sha256.Size]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.young, sum)
	delete(c.old, sum)
}

func (c *cache) len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.young) + len(c.old)
}
