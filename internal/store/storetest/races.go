package storetest

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// counters increments two counters in one transaction each from many
// goroutines; readers see them move forward only, and equal.
func counters(t *testing.T, s store.Store) {
	const writers, increments = 8, 25
	ctx := within(t)
	zero := make([]byte, 8)
	commit(t, s, store.Op{Key: "/n/1", Value: zero}, store.Op{Key: "/n/2", Value: zero})

	var acknowledged atomic.Uint64 // by any writer, so far
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < increments; {
				kv, err := s.Get(ctx, "/n/1")
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				n := binary.BigEndian.Uint64(kv.Value) + 1
				next := binary.BigEndian.AppendUint64(nil, n)
				_, err = s.Commit(ctx, store.Txn{
					If:   []store.Cond{{Key: "/n/1", Revision: kv.Revision}},
					Then: []store.Op{{Key: "/n/1", Value: next}, {Key: "/n/2", Value: next}},
				})
				switch {
				case err == nil:
					done++
					raise(&acknowledged, n)
				case !fault.Is(err, fault.Conflict):
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				floor := acknowledged.Load()
				kvs, _, err := s.List(ctx, "/n/")
				if err != nil || len(kvs) != 2 {
					t.Errorf("list: %d values, error %v", len(kvs), err)
					return
				}
				one, two := binary.BigEndian.Uint64(kvs[0].Value), binary.BigEndian.Uint64(kvs[1].Value)
				if one != two {
					t.Errorf("a list saw half a transaction: %d and %d", one, two)
					return
				}
				if one < last || one < floor {
					t.Errorf("a list saw %d after %d was read and %d acknowledged", one, last, floor)
					return
				}
				last = one
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	if got := binary.BigEndian.Uint64(get(t, s, "/n/1").Value); got != writers*increments {
		t.Errorf("the counter stands at %d, want %d", got, writers*increments)
	}
}

func raise(v *atomic.Uint64, to uint64) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}

func creators(t *testing.T, s store.Store) {
	ctx := within(t)
	for round := range 5 {
		key := fmt.Sprintf("/token/%d", round)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, err := s.Commit(ctx, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{put(key, fmt.Sprint(i))}})
				switch {
				case err == nil:
					won.Add(1)
				case !fault.Is(err, fault.Conflict):
					t.Errorf("commit: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of 20 creators won %s", won.Load(), key)
		}
	}
}
