package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

const (
	kindSegment = "segment"
	kindHead    = "segment-head"
	kindCursor  = "segment-cursor"

	// maxPending bounds the records that wait for a commit.
	maxPending = 16384
	// maxSegmentBytes keeps a commit well below etcd's 1.5 MiB request limit.
	maxSegmentBytes = 768 << 10
	// commitTimeout bounds one store transaction: the callers it serves may
	// have given up, the others have not.
	commitTimeout = 15 * time.Second
)

// Params is what a Journal needs.
type Params struct {
	Store       store.Store
	TrustDomain string
	Clock       clock.Clock  // nil: the machine's
	Log         *slog.Logger // nil: discarded
	Registerer  prometheus.Registerer
	// AcceptClock says that the machine's clock is right although the journal
	// holds later records: they were made while it was wrong.
	AcceptClock bool
}

// Journal is the issuance journal and the inventory. It is safe for
// concurrent use.
type Journal struct {
	store  store.Store
	td     string
	clock  clock.Clock
	guard  *Guard
	log    *slog.Logger
	metric metrics
	name   string // of this replica, in segment names

	queueMu    sync.Mutex // guards what follows
	queue      []*pending
	queued     int  // records in queue
	committing bool // somebody leads

	index index
}

type pending struct {
	records []Record
	frames  [][]byte
	bytes   int
	guard   store.Cond
	done    chan error    // buffered; receives the outcome
	lead    chan struct{} // buffered; the holder becomes the leader
}

type metrics struct {
	records  prometheus.Counter
	commits  *prometheus.HistogramVec
	size     prometheus.Histogram
	segments prometheus.Gauge
	live     prometheus.Gauge
	limited  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		records: f.NewCounter(prometheus.CounterOpts{Name: "legation_ledger_records_total", Help: "Credentials recorded by this replica."}),
		commits: f.NewHistogramVec(prometheus.HistogramOpts{Name: "legation_ledger_commit_seconds", Help: "Time to commit one segment of the journal.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"result"}),
		size:     f.NewHistogram(prometheus.HistogramOpts{Name: "legation_ledger_segment_records", Help: "Records per segment.", Buckets: prometheus.ExponentialBuckets(1, 4, 7)}),
		segments: f.NewGauge(prometheus.GaugeOpts{Name: "legation_ledger_segments", Help: "Segments of the journal in the store."}),
		live:     f.NewGauge(prometheus.GaugeOpts{Name: "legation_ledger_inventory_records", Help: "Records in the inventory."}),
		limited:  f.NewCounter(prometheus.CounterOpts{Name: "legation_ledger_limited_total", Help: "Calls refused because the queue of the journal was full."}),
	}
}

// Open reads the journal. It refuses (fault.Internal) a segment that it
// cannot read: an inventory with holes would let certificates escape
// revocation.
func Open(ctx context.Context, p Params) (*Journal, error) {
	if p.Store == nil || p.TrustDomain == "" {
		return nil, errors.New("open journal: a store and a trust domain are needed")
	}
	if p.Clock == nil {
		p.Clock = clock.System
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	var id [6]byte
	rand.Read(id[:])
	j := &Journal{
		store: p.Store, td: p.TrustDomain, clock: p.Clock, log: p.Log,
		guard: NewGuard(p.Clock), name: hex.EncodeToString(id[:]), metric: newMetrics(p.Registerer),
	}
	j.guard.ignoreLast = p.AcceptClock
	promauto.With(p.Registerer).NewGaugeFunc(prometheus.GaugeOpts{Name: "legation_ledger_clock_trusted",
		Help: "1 while the machine's clock is believed; 0: nothing is issued, and status says why."}, j.guard.trusted)
	j.index.init()
	if err := j.reload(ctx); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

// Guard says whether wall time may be trusted for issuing.
func (j *Journal) Guard() *Guard { return j.guard }

func (j *Journal) key(kind, name string) string {
	return store.Key{TrustDomain: j.td, Namespace: store.System, Kind: kind, Name: name}.String()
}

func (j *Journal) segmentPrefix() string {
	return store.Prefix + j.td + "/" + store.System + "/" + kindSegment + "/"
}

// Record makes records durable; see RecordIf.
func (j *Journal) Record(ctx context.Context, records []Record) error {
	return j.RecordIf(ctx, records, store.Cond{})
}

// RecordIf makes records durable, if guard (unless it is zero) holds in the
// same transaction; fault.Conflict if it does not. Concurrent callers with
// equal guards share one transaction. When it returns nil the records are in
// the store and in the inventory. After any other error than Conflict and
// Limited they may be recorded nevertheless. fault.Limited when too many wait.
func (j *Journal) RecordIf(ctx context.Context, records []Record, guard store.Cond) error {
	if len(records) == 0 {
		return nil
	}
	p := &pending{records: records, guard: guard, done: make(chan error, 1), lead: make(chan struct{}, 1)}
	p.frames = make([][]byte, len(records))
	for i := range records {
		frame, err := appendRecord(nil, &records[i])
		if err != nil {
			return fmt.Errorf("record issuance: %w", err)
		}
		p.frames[i] = frame
		p.bytes += len(frame)
	}
	if p.bytes > maxSegmentBytes {
		return fault.New(fault.Limited, "record issuance: %d records of %d bytes in one call; split the batch", len(records), p.bytes)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("record issuance: %w", err)
	}

	j.queueMu.Lock()
	if j.queued+len(records) > maxPending {
		j.queueMu.Unlock()
		j.metric.limited.Inc()
		return fault.New(fault.Limited, "record issuance: %d records wait for the store already; try again later", maxPending)
	}
	j.queue = append(j.queue, p)
	j.queued += len(records)
	if !j.committing {
		j.committing = true
		p.lead <- struct{}{}
	}
	j.queueMu.Unlock()

	// Whoever leads commits one segment, then hands over to the oldest that
	// waits. A caller whose ctx ended leaves the queue; once its records are
	// on their way it waits, bounded by commitTimeout.
	gone := ctx.Done()
	for {
		select {
		case err := <-p.done:
			return err
		case <-p.lead:
			j.commitNext()
		case <-gone:
			if j.withdraw(p) {
				return fmt.Errorf("record issuance: %w", ctx.Err())
			}
			gone = nil
		}
	}
}

// withdraw takes p out of the queue; false when it is being committed.
func (j *Journal) withdraw(p *pending) bool {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	i := slices.Index(j.queue, p)
	if i < 0 {
		return false
	}
	j.queue = slices.Delete(j.queue, i, i+1)
	j.queued -= len(p.records)
	select {
	case <-p.lead:
		j.passLeadLocked()
	default:
	}
	return true
}

// passLeadLocked makes the oldest that waits the leader.
func (j *Journal) passLeadLocked() {
	if len(j.queue) > 0 {
		j.queue[0].lead <- struct{}{}
	} else {
		j.committing = false
	}
}

// commitNext commits what waits with the guard of the oldest, and hands the
// lead on.
func (j *Journal) commitNext() {
	j.queueMu.Lock()
	first := j.queue[0]
	var batch, rest []*pending
	size, count := 0, 0
	for _, p := range j.queue {
		if p.guard == first.guard && size+p.bytes <= maxSegmentBytes {
			batch = append(batch, p)
			size += p.bytes
			count += len(p.records)
		} else {
			rest = append(rest, p)
		}
	}
	j.queue = rest
	j.queued -= count
	j.queueMu.Unlock()

	err := j.commit(batch, count)

	j.queueMu.Lock()
	j.passLeadLocked()
	j.queueMu.Unlock()
	for _, p := range batch {
		p.done <- err
	}
}

func (j *Journal) commit(batch []*pending, count int) error {
	records := make([]Record, 0, count)
	frames := make([][]byte, 0, count)
	for _, p := range batch {
		records = append(records, p.records...)
		frames = append(frames, p.frames...)
	}
	value := encodeSegment(count, frames...)
	var nonce [4]byte
	rand.Read(nonce[:])
	name := fmt.Sprintf("%016x-%s-%x", j.clock.Now().UnixNano(), j.name, nonce)
	key := j.key(kindSegment, name)
	txn := store.Txn{
		If: []store.Cond{{Key: key}},
		Then: []store.Op{
			{Key: key, Value: value},
			// The head's revision tells a reader how far it must have read.
			{Key: j.key(kindHead, "newest"), Value: store.EncodeValue(kindHead, 1, []byte(name))},
		},
	}
	if guard := batch[0].guard; guard != (store.Cond{}) {
		txn.If = append(txn.If, guard)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	start := time.Now()
	revision, err := j.store.Commit(ctx, txn)
	if err != nil {
		j.metric.commits.WithLabelValues("error").Observe(time.Since(start).Seconds())
		return fmt.Errorf("record issuance of %d credentials: %w", count, err)
	}
	j.metric.commits.WithLabelValues("ok").Observe(time.Since(start).Seconds())
	j.metric.records.Add(float64(count))
	j.metric.size.Observe(float64(count))
	j.add(Segment{Name: name, Revision: revision, Records: records})
	return nil
}

// add puts a segment into the inventory, once.
func (j *Journal) add(s Segment) {
	segments, live := j.index.add(s)
	for i := range s.Records {
		j.guard.saw(s.Records[i].IssuedAt)
	}
	j.metric.segments.Set(float64(segments))
	j.metric.live.Set(float64(live))
}

func (j *Journal) drop(name string) {
	segments, live := j.index.drop(name)
	j.metric.segments.Set(float64(segments))
	j.metric.live.Set(float64(live))
}
