package chaincheck

import (
	"bytes"
	"crypto/x509"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// cache remembers accepted chains, under one Trust. Refusals are not
// remembered: they are found again.
//
// An entry answers for the exact bytes of one chain and one staple, in the
// time from its verification to the first end of what it rests on, and while
// no OCSP answer has turned bad. A clock that is set back finds nothing.
type cache struct {
	trust  *Trust
	seed   maphash.Seed
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu       sync.RWMutex
	accepted map[uint64]*accepted // by the leaf's signature; a collision replaces
}

type accepted struct {
	used       atomic.Bool
	chain      []*x509.Certificate
	staple     []byte
	generation uint64 // of OCSP, from before the verification
	result     *Result
}

const (
	cacheShards    = 16
	maxCachedChain = 32 << 10 // bytes of chain and staple
)

func newCache(t *Trust) *cache {
	c := &cache{trust: t, seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].accepted = map[uint64]*accepted{}
	}
	return c
}

func (c *cache) key(chain []*x509.Certificate) uint64 {
	return maphash.Bytes(c.seed, chain[0].Signature)
}

// find returns the verdict about a chain, or nil. It allocates nothing.
func (c *cache) find(chain []*x509.Certificate, staple []byte, now time.Time, generation uint64) *Result {
	key := c.key(chain)
	shard := &c.shards[key%cacheShards]
	shard.mu.RLock()
	a := shard.accepted[key]
	shard.mu.RUnlock()
	switch {
	case a == nil || !a.is(chain, staple):
		return nil
	case a.generation != generation || now.Before(a.result.since) || now.After(a.result.until):
		// Gone for good: no clock brings it back.
		shard.mu.Lock()
		if shard.accepted[key] == a {
			delete(shard.accepted, key)
		}
		shard.mu.Unlock()
		return nil
	}
	if !a.used.Load() {
		a.used.Store(true)
	}
	return a.result
}

func (a *accepted) is(chain []*x509.Certificate, staple []byte) bool {
	if len(chain) != len(a.chain) || !bytes.Equal(staple, a.staple) {
		return false
	}
	for i := range chain {
		if chain[i] != a.chain[i] && !bytes.Equal(chain[i].Raw, a.chain[i].Raw) {
			return false
		}
	}
	return true
}

// keep remembers a verdict; perShard bounds how many.
func (c *cache) keep(chain []*x509.Certificate, staple []byte, r *Result, generation uint64, perShard int) {
	size := len(staple)
	for _, cert := range chain {
		size += len(cert.Raw)
	}
	if size > maxCachedChain || r.until.Before(r.since) {
		return
	}
	a := &accepted{chain: append([]*x509.Certificate(nil), chain...), staple: bytes.Clone(staple), generation: generation, result: r}
	key := c.key(chain)
	shard := &c.shards[key%cacheShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if _, replaces := shard.accepted[key]; !replaces && len(shard.accepted) >= perShard {
		shard.evictLocked()
	}
	shard.accepted[key] = a
}

// evictLocked forgets one of a few at random, if it can one that was not used
// since it was last passed over.
func (s *cacheShard) evictLocked() {
	var victim uint64
	seen := 0
	for key, a := range s.accepted {
		victim = key
		if seen++; seen == 8 || !a.used.Swap(false) {
			break
		}
	}
	delete(s.accepted, victim)
}

func (c *cache) len() int {
	n := 0
	for i := range c.shards {
		c.shards[i].mu.RLock()
		n += len(c.shards[i].accepted)
		c.shards[i].mu.RUnlock()
	}
	return n
}
