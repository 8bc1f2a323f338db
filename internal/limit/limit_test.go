package limit

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBuckets(Rate{PerSecond: 2, Burst: 4}, 0)
		for i := range 4 {
			if _, ok := b.Take("a", 1); !ok {
				t.Fatalf("take %d of a full bucket of 4 was refused", i)
			}
		}
		wait, ok := b.Take("a", 1)
		if ok || wait != 500*time.Millisecond {
			t.Fatalf("an empty bucket answered %v, %v; want refused for 500ms", wait, ok)
		}
		if _, ok := b.Take("b", 1); !ok {
			t.Fatal("another key was refused")
		}
		time.Sleep(wait)
		if _, ok := b.Take("a", 1); !ok {
			t.Fatal("refused after the wait it asked for")
		}
	})
}

func TestBatchLargerThanTheBurstIsPaidOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBuckets(Rate{PerSecond: 10, Burst: 10}, 0)
		if _, ok := b.Take("a", 30); !ok {
			t.Fatal("a batch of 30 from a full bucket was refused")
		}
		wait, ok := b.Take("a", 10)
		if ok || wait != 3*time.Second {
			t.Fatalf("got %v, %v; want refused for 3s", wait, ok)
		}
	})
}

func TestInventedKeysCostNoMemoryAndRefillNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBuckets(Rate{PerSecond: 1, Burst: 1}, 8)
		if _, ok := b.Take("mine", 1); !ok {
			t.Fatal("first take refused")
		}
		granted := 0
		for i := range 1000 {
			if _, ok := b.Take(fmt.Sprint(i), 1); ok {
				granted++
			}
		}
		if b.Len() > 8 {
			t.Fatalf("%d keys remembered; want at most 8", b.Len())
		}
		if granted > 8 {
			t.Fatalf("%d grants to invented keys; want at most 7 of their own and 1 shared", granted)
		}
		if _, ok := b.Take("mine", 1); ok {
			t.Fatal("the flood of keys refilled a bucket")
		}
		time.Sleep(time.Second)
		if _, ok := b.Take("new", 1); !ok {
			t.Fatal("a new key was refused although the old ones are idle")
		}
	})
}

func TestSlots(t *testing.T) {
	s := NewSlots(2)
	release, ok := s.Acquire("a")
	if _, ok2 := s.Acquire("a"); !ok || !ok2 {
		t.Fatal("two slots were not granted")
	}
	if _, ok := s.Acquire("a"); ok {
		t.Fatal("a third slot was granted")
	}
	if _, ok := s.Acquire("b"); !ok {
		t.Fatal("another key was refused")
	}
	release()
	release()
	if s.Held("a") != 1 {
		t.Fatalf("%d held after one was released twice; want 1", s.Held("a"))
	}
}

func TestIPKey(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1":            "192.0.2.1",
		"::ffff:192.0.2.1":     "192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
	} {
		if got := IPKey(netip.MustParseAddr(in)); got != want {
			t.Errorf("IPKey(%s) = %s; want %s", in, got, want)
		}
	}
	if got := IPKey(netip.Addr{}); got != "unknown" {
		t.Errorf("the zero address is %q", got)
	}
}

func TestErrorCrossesGRPC(t *testing.T) {
	err := fmt.Errorf("attest: %w", Error("attestations from 192.0.2.1", 1500*time.Millisecond))
	if !fault.Is(err, fault.Limited) {
		t.Fatalf("kind %s", fault.KindOf(err))
	}
	mapped := GRPC(err)
	if status.Code(mapped) != codes.ResourceExhausted {
		t.Fatalf("code %s", status.Code(mapped))
	}
	if d, ok := RetryAfter(mapped); !ok || d != 1500*time.Millisecond {
		t.Fatalf("the client reads %v, %v", d, ok)
	}
	if d, ok := RetryAfter(err); !ok || d != 1500*time.Millisecond {
		t.Fatalf("in process: %v, %v", d, ok)
	}
	if _, ok := RetryAfter(fault.New(fault.Denied, "no")); ok {
		t.Fatal("a denial says when to try again")
	}
}
