package ledger

import (
	"context"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store/memory"
)

func TestASegmentGoesWhenAllItsCertificatesExpiredAnHourAgo(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	j, other := openJournal(t, s, clock.System), openJournal(t, s, clock.System)
	runJournal(t, other)
	gone, mixed, recent := newRecord("spiffe://example.org/gone", -2*time.Hour), newRecord("spiffe://example.org/mixed", -2*time.Hour), newRecord("spiffe://example.org/recent", -50*time.Minute)
	record(t, j, gone)
	record(t, j, mixed, newRecord("spiffe://example.org/live", time.Hour))
	record(t, j, recent)
	if err := other.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := j.Prune(ctx); err != nil {
		t.Fatal(err)
	}
	if n := segmentsIn(t, s); n != 2 {
		t.Errorf("%d segments are left, want 2", n)
	}
	for _, replica := range []*Journal{j, other} {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := replica.BySerial(gone.Serial); err != nil {
				break
			}
		}
		if _, err := replica.BySerial(gone.Serial); !fault.Is(err, fault.NotFound) {
			t.Errorf("the expired record: %v, want not found", err)
		}
		if records, _ := replica.List(Filter{SPIFFEID: gone.SPIFFEID}); len(records) != 0 {
			t.Error("the expired record is still listed")
		}
		for _, r := range []Record{mixed, recent} {
			if _, err := replica.BySerial(r.Serial); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestACursorHoldsSegmentsBack(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	j := openJournal(t, s, clock.System)
	cursor, err := j.Cursor(ctx, "audit")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		record(t, j, newRecord("spiffe://example.org/w", -2*time.Hour))
	}
	prune := func(want int) {
		t.Helper()
		if err := j.Prune(ctx); err != nil {
			t.Fatal(err)
		}
		if n := segmentsIn(t, s); n != want {
			t.Errorf("%d segments are left, want %d", n, want)
		}
	}
	prune(3)
	segments, err := cursor.Next(ctx, 2)
	if err != nil || len(segments) != 2 || segments[0].Revision >= segments[1].Revision {
		t.Fatalf("Next = %v, %v", segments, err)
	}
	if err := cursor.Pass(ctx, segments[0]); err != nil {
		t.Fatal(err)
	}
	prune(2)

	// A restart continues where it was.
	again, err := openJournal(t, s, clock.System).Cursor(ctx, "audit")
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := again.Next(ctx, 10); err != nil || len(rest) != 2 || rest[0].Name != segments[1].Name {
		t.Errorf("Next after a restart = %v, %v", rest, err)
	}
	if err := again.Pass(ctx, segments[1]); err != nil {
		t.Fatal(err)
	}
	if err := cursor.Pass(ctx, segments[1]); !fault.Is(err, fault.Conflict) {
		t.Errorf("a cursor moved by two: %v, want conflict", err)
	}
	if err := again.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	prune(0)
	if _, err := j.Cursor(ctx, "Not A Name"); !fault.Is(err, fault.Invalid) {
		t.Errorf("bad name: %v, want invalid", err)
	}
}

func TestAClockThatJumpedDeletesNothing(t *testing.T) {
	s := memory.New()
	c := &clock.Skewed{}
	j := openJournal(t, s, c)
	record(t, j, newRecord("spiffe://example.org/w", time.Hour))
	c.Jump(1000 * time.Hour)
	if err := j.Prune(context.Background()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Prune = %v, want unavailable", err)
	}
	if n := segmentsIn(t, s); n != 1 {
		t.Error("a certificate that only seemed expired was forgotten")
	}
}
