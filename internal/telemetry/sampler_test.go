package telemetry

import (
	"fmt"
	"testing"
	"time"
)

func TestALoopingClientCannotFillTheDisk(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSampler(3, time.Minute)
	s.now = func() time.Time { return now }
	written, told := 0, uint64(0)
	const total = 24 * 60 * 60 * 10 // ten a second for a day
	for range total {
		now = now.Add(100 * time.Millisecond)
		if ok, left := s.Allow("revoked spiffe://example.org/loop"); ok {
			written++
			told += left
		}
	}
	if written > 24*60+3 {
		t.Errorf("%d lines in a day", written)
	}
	if missed := total - uint64(written) - told; missed > 600 {
		t.Errorf("%d events of the past are neither written nor told about", missed)
	}
	if ok, left := s.Allow("plaintext 192.0.2.1"); !ok || left != 0 {
		t.Error("another kind was silenced with it")
	}
}

func TestManyKindsShareABound(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSampler(3, time.Minute)
	s.now = func() time.Time { return now }
	written := 0
	for i := range 100_000 {
		now = now.Add(time.Millisecond)
		if ok, _ := s.Allow(fmt.Sprint("peer ", i)); ok {
			written++
		}
	}
	if written > 50+100+1 { // the burst, and one a second
		t.Errorf("%d lines in 100 s", written)
	}
	if n := len(s.kinds); n > maxKinds+1 {
		t.Errorf("%d kinds are kept", n)
	}
}
