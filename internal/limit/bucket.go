package limit

import (
	"container/list"
	"sync"
	"time"
)

// Rate is how much a key may do: PerSecond over time, Burst at once. A Rate
// of zero PerSecond does not limit.
type Rate struct {
	PerSecond float64
	Burst     int
}

// DefaultKeys is how many keys a Buckets remembers unless told otherwise.
const DefaultKeys = 16384

// Buckets is one token bucket per key. It remembers at most a fixed number
// of keys: a bucket that is full again may be forgotten, one that is not is
// kept, and when none can be forgotten, new keys share one bucket. So
// inventing keys neither costs memory nor refills anybody's bucket.
type Buckets struct {
	rate Rate
	keys int

	mu       sync.Mutex               // guards all below
	byKey    map[string]*list.Element // of *bucket
	recent   *list.List               // front is the most recently used
	overflow bucket
}

type bucket struct {
	key    string
	tokens float64
	at     time.Time
}

// NewBuckets returns empty buckets; keys 0 is DefaultKeys.
func NewBuckets(rate Rate, keys int) *Buckets {
	if keys <= 0 {
		keys = DefaultKeys
	}
	if rate.Burst < 1 {
		rate.Burst = 1
	}
	return &Buckets{rate: rate, keys: keys, byKey: map[string]*list.Element{}, recent: list.New(),
		overflow: bucket{tokens: float64(rate.Burst), at: time.Now()}}
}

// Take takes n tokens of the key's bucket. Without room it takes nothing and
// returns after how long there will be. More than Burst at once is granted
// from a full bucket and paid off over time, so that one large batch is
// slowed down and not refused for ever.
func (b *Buckets) Take(key string, n int) (time.Duration, bool) {
	if b == nil || b.rate.PerSecond <= 0 || n <= 0 {
		return 0, true
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.bucketLocked(key, now)
	b.fillLocked(k, now)
	need := min(float64(n), float64(b.rate.Burst))
	if k.tokens < need {
		return time.Duration((need - k.tokens) / b.rate.PerSecond * float64(time.Second)), false
	}
	k.tokens -= float64(n)
	return 0, true
}

// Len is how many keys are remembered.
func (b *Buckets) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.byKey)
}

func (b *Buckets) fillLocked(k *bucket, now time.Time) {
	if d := now.Sub(k.at); d > 0 {
		k.tokens = min(k.tokens+d.Seconds()*b.rate.PerSecond, float64(b.rate.Burst))
		k.at = now
	}
}

func (b *Buckets) bucketLocked(key string, now time.Time) *bucket {
	if e, ok := b.byKey[key]; ok {
		b.recent.MoveToFront(e)
		return e.Value.(*bucket)
	}
	if len(b.byKey) >= b.keys {
		oldest := b.recent.Back()
		k := oldest.Value.(*bucket)
		b.fillLocked(k, now)
		if k.tokens < float64(b.rate.Burst) {
			return &b.overflow
		}
		b.recent.Remove(oldest)
		delete(b.byKey, k.key)
	}
	k := &bucket{key: key, tokens: float64(b.rate.Burst), at: now}
	b.byKey[key] = b.recent.PushFront(k)
	return k
}
