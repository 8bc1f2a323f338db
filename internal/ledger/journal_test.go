package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const td = "example.org"

func openJournal(t testing.TB, s store.Store, c clock.Clock) *Journal {
	t.Helper()
	j, err := Open(context.Background(), Params{Store: s, TrustDomain: td, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func runJournal(t testing.TB, j *Journal) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = j.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func newRecord(id string, ttl time.Duration) Record {
	var serial [16]byte
	rand.Read(serial[:])
	now := time.Now()
	return Record{
		Kind: KindX509, Authority: "default", Profile: "workload", Serial: hex.EncodeToString(serial[:]), SPIFFEID: id,
		Namespace: "default", Entry: "default/web", Node: "node-1", Instance: "uid/0",
		IssuedAt: now, NotBefore: now.Add(-5 * time.Minute).Truncate(time.Second), NotAfter: now.Add(ttl).Truncate(time.Second),
	}
}

func record(t testing.TB, j *Journal, records ...Record) {
	t.Helper()
	if err := j.Record(context.Background(), records); err != nil {
		t.Fatal(err)
	}
}

func segmentsIn(t testing.TB, s store.Store) int {
	t.Helper()
	kvs, _, err := s.List(context.Background(), store.Prefix+td+"/system/segment/")
	if err != nil {
		t.Fatal(err)
	}
	return len(kvs)
}

// slow is a store whose commits take as long as a disk's.
type slow struct {
	store.Store
	delay time.Duration
}

func (s slow) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	time.Sleep(s.delay)
	return s.Store.Commit(ctx, txn)
}

func TestConcurrentCallersShareTransactions(t *testing.T) {
	s := memory.New()
	j := openJournal(t, slow{s, 5 * time.Millisecond}, clock.System)
	const callers = 200
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			r := newRecord(fmt.Sprintf("spiffe://example.org/w%d", i), time.Hour)
			if err := j.Record(context.Background(), []Record{r}); err != nil {
				t.Error(err)
				return
			}
			// Durable and listable once Record returned.
			if _, err := j.BySerial(r.Serial); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := segmentsIn(t, s); n > callers/4 {
		t.Errorf("%d calls took %d transactions", callers, n)
	}
	if _, total := openJournal(t, s, clock.System).List(Filter{}); total != callers {
		t.Errorf("a fresh journal lists %d records, want %d", total, callers)
	}
}

func TestAFullStoreRefusesAndRecordsNothing(t *testing.T) {
	s := memory.New()
	j := openJournal(t, s, clock.System)
	full := fault.New(fault.Limited, "the store is full")
	s.FailCommits(func(store.Txn) error { return full })
	r := newRecord("spiffe://example.org/w", time.Hour)
	if err := j.Record(context.Background(), []Record{r}); !errors.Is(err, full) {
		t.Fatalf("Record = %v, want the store's reason", err)
	}
	if _, err := j.BySerial(r.Serial); !fault.Is(err, fault.NotFound) {
		t.Errorf("BySerial = %v, want not found", err)
	}
	s.FailCommits(nil)
	record(t, j, r)
}

func TestTheQueueIsBounded(t *testing.T) {
	s := memory.New()
	enter, leave := make(chan struct{}, 100), make(chan struct{})
	s.FailCommits(func(store.Txn) error { return nil })
	j := openJournal(t, blocking{s, enter, leave}, clock.System)
	batch := make([]Record, 1000)
	for i := range batch {
		batch[i] = newRecord("spiffe://example.org/w", time.Hour)
	}
	errs := make(chan error, 100)
	go func() { errs <- j.Record(context.Background(), batch[:1]) }()
	<-enter // the first is with the store; what follows queues
	const calls = maxPending/1000 + 3
	for range calls {
		go func() { errs <- j.Record(context.Background(), batch) }()
	}
	limited := 0
	for range 3 { // 16 of 19 fit
		if err := <-errs; !fault.Is(err, fault.Limited) {
			t.Fatalf("Record = %v, want limited", err)
		}
		limited++
	}
	close(leave)
	for range calls + 1 - limited {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// blocking commits only once leave is closed.
type blocking struct {
	store.Store
	enter, leave chan struct{}
}

func (b blocking) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	b.enter <- struct{}{}
	<-b.leave
	return b.Store.Commit(ctx, txn)
}

func TestACallerThatGivesUpLeavesTheQueue(t *testing.T) {
	s := memory.New()
	enter, leave := make(chan struct{}, 100), make(chan struct{})
	j := openJournal(t, blocking{s, enter, leave}, clock.System)
	first, second, third := newRecord("spiffe://example.org/1", time.Hour), newRecord("spiffe://example.org/2", time.Hour), newRecord("spiffe://example.org/3", time.Hour)
	errs := make(chan error, 2)
	go func() { errs <- j.Record(context.Background(), []Record{first}) }()
	<-enter
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := j.Record(ctx, []Record{second}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Record = %v, want the deadline", err)
	}
	go func() { errs <- j.Record(context.Background(), []Record{third}) }()
	close(leave)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, total := j.List(Filter{}); total != 2 {
		t.Errorf("%d records, want the two whose callers stayed", total)
	}
}

func TestRecordsCommitOnlyWhileTheirGuardHolds(t *testing.T) {
	s := memory.New()
	j := openJournal(t, s, clock.System)
	ctx := context.Background()
	key := "/legation/v1/example.org/system/authority/default/crl"
	revision, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: key, Value: []byte("1")}}})
	if err != nil {
		t.Fatal(err)
	}
	good, bad := newRecord("spiffe://example.org/good", time.Hour), newRecord("spiffe://example.org/bad", time.Hour)
	if err := j.RecordIf(ctx, []Record{good}, store.Cond{Key: key, Revision: revision}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Txn{Then: []store.Op{{Key: key, Value: []byte("2")}}}); err != nil {
		t.Fatal(err)
	}
	if err := j.RecordIf(ctx, []Record{bad}, store.Cond{Key: key, Revision: revision}); !fault.Is(err, fault.Conflict) {
		t.Errorf("RecordIf = %v, want conflict", err)
	}
	if _, total := j.List(Filter{}); total != 1 {
		t.Errorf("%d records, want 1", total)
	}
}

func TestAStaleGuardFailsNobodyElse(t *testing.T) {
	s := memory.New()
	j := openJournal(t, slow{s, time.Millisecond}, clock.System)
	stale := store.Cond{Key: "/legation/v1/example.org/system/x/y", Revision: 77}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			guard := store.Cond{}
			if i%3 == 0 {
				guard = stale
			}
			err := j.RecordIf(context.Background(), []Record{newRecord("spiffe://example.org/w", time.Hour)}, guard)
			if (i%3 == 0) != fault.Is(err, fault.Conflict) || (i%3 != 0 && err != nil) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestReplicasSeeEachOthersRecords(t *testing.T) {
	s := memory.New()
	one, two := openJournal(t, s, clock.System), openJournal(t, s, clock.System)
	runJournal(t, two)
	for range 20 {
		r := newRecord("spiffe://example.org/w", time.Hour)
		record(t, one, r)
		if err := two.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := two.BySerial(r.Serial); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSyncNeedsNoRun(t *testing.T) {
	s := memory.New()
	one, two := openJournal(t, s, clock.System), openJournal(t, s, clock.System)
	if err := two.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	r := newRecord("spiffe://example.org/w", time.Hour)
	record(t, one, r)
	if err := two.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := two.BySerial(r.Serial); err != nil {
		t.Error(err)
	}
}

func TestListSelects(t *testing.T) {
	j := openJournal(t, memory.New(), clock.System)
	web := newRecord("spiffe://example.org/web", time.Hour)
	db := newRecord("spiffe://example.org/db", 3*time.Hour)
	db.Node, db.Instance, db.Profile, db.Namespace = "node-2", "session/1", "agent", "system"
	token := newRecord("spiffe://example.org/web", time.Minute)
	token.Kind = KindJWT
	old := newRecord("spiffe://example.org/web", -time.Minute)
	record(t, j, web, db, token, old)
	now := time.Now()
	for name, tc := range map[string]struct {
		filter Filter
		want   int
	}{
		"everything":            {Filter{}, 4},
		"an identity":           {Filter{SPIFFEID: web.SPIFFEID}, 3},
		"certificates of it":    {Filter{SPIFFEID: web.SPIFFEID, Kind: KindX509}, 2},
		"a node":                {Filter{Node: "node-2"}, 1},
		"another's node and id": {Filter{Node: "node-2", SPIFFEID: web.SPIFFEID}, 0},
		"an instance":           {Filter{Instance: "session/1"}, 1},
		"a profile":             {Filter{Profile: "agent"}, 1},
		"a namespace":           {Filter{Namespace: "default"}, 3},
		"a serial's first half": {Filter{SerialPrefix: db.Serial[:16]}, 1},
		"unexpired":             {Filter{ExpiresFrom: now}, 3},
		"expiring in 2 h":       {Filter{ExpiresFrom: now, ExpiresUntil: now.Add(2 * time.Hour)}, 2},
		"nobody's":              {Filter{SPIFFEID: "spiffe://example.org/nobody"}, 0},
	} {
		if got, total := j.List(tc.filter); total != tc.want || len(got) != tc.want {
			t.Errorf("%s: %d (%d) records, want %d", name, total, len(got), tc.want)
		}
	}
	if got, total := j.List(Filter{Limit: 2}); len(got) != 2 || total != 4 {
		t.Errorf("limit 2: %d of %d", len(got), total)
	}
}
