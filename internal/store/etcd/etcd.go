// Package etcd is the store on an etcd server inside this process. There is
// no listener, on TCP or otherwise: transactions go straight to the server's
// raft log, reads and watches straight to its multi-version store.
//
// It answers how bytes stay on the disk of one machine: modes, locking,
// refusing damage, refusing to fill the disk. What the bytes mean is for
// others.
package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"

	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// Config of a store. Only Dir is required.
type Config struct {
	// Dir holds the data; it is made with mode 0700 when it is missing
	// (its parent has to exist or is made so too).
	Dir string
	// QuotaBytes bounds the data in use, in bytes; 0 is 2 GiB. Beyond it
	// writes are refused with fault.Limited; deletions and reads go on.
	QuotaBytes int64
	// ReserveBytes of the disk must stay free, or writes are refused as
	// above; 0 is 64 MiB.
	ReserveBytes int64
	// Log gets etcd's warnings and errors; nil discards them.
	Log *slog.Logger

	history   int64  // revisions kept for watches; 0 is keepRevisions
	snapEvery uint64 // log entries between snapshots; 0 is snapshotCount
}

const (
	defaultQuota   = 2 << 30
	defaultReserve = 64 << 20

	// A single member elects itself after 2 to 3 ticks, of which one is
	// skipped: at most 40 ms of the start.
	tick          = 20 // ms
	electionTicks = 2

	// The write-ahead log is the durable copy; the page file may follow late.
	batchInterval = 200 * time.Millisecond
	// Disk used by the log: at most 5 segments beyond the last snapshot.
	snapshotCount = 2000
	maxFiles      = 5
	segmentBytes  = 16 << 20

	// overhead of a request beyond keys and values: framing of each condition
	// and operation, generously.
	maxRequestBytes = store.MaxBytes + store.MaxOps*64

	startTimeout = 30 * time.Second
)

// A segment is preallocated whole: etcd's 64 MB would be most of a small disk.
func init() { wal.SegmentSizeBytes = segmentBytes }

// Store is a store.Store on an embedded etcd server.
type Store struct {
	cfg  Config
	log  *slog.Logger
	srv  *etcdserver.EtcdServer
	kv   mvcc.WatchableKV
	lock *durable.DirLock
	gate *gate
	halt *halt

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // maintenance, watchers

	open   sync.RWMutex // held for reading by each call, guards closed
	closed bool
}

var errClosed = fault.New(fault.Unavailable, "the store is closed")

// Open starts the server on the data in cfg.Dir, or on a new one, and returns
// when it serves; ctx bounds the start only. A directory in use by another
// process is fault.Unavailable within two seconds. Damaged data is refused
// with fault.Internal, saying what is damaged, and left as it was.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, fault.New(fault.Invalid, "open store: no data directory given")
	}
	if cfg.QuotaBytes <= 0 {
		cfg.QuotaBytes = defaultQuota
	}
	if cfg.ReserveBytes <= 0 {
		cfg.ReserveBytes = defaultReserve
	}
	if cfg.history <= 0 {
		cfg.history = keepRevisions
	}
	if cfg.snapEvery == 0 {
		cfg.snapEvery = snapshotCount
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := makeDirs(cfg.Dir); err != nil {
		return nil, err
	}
	lock, err := durable.LockDir(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, cfg, log, lock)
	if err != nil {
		lock.Release()
		return nil, err
	}
	return s, nil
}

func start(ctx context.Context, cfg Config, log *slog.Logger, lock *durable.DirLock) (*Store, error) {
	unborn, err := verify(cfg.Dir)
	if err != nil {
		return nil, fault.New(fault.Internal,
			"the data in %s is damaged: %w; nothing was changed: restore a snapshot into another directory, or move this one away to begin anew", cfg.Dir, err)
	}
	if unborn { // nothing was ever committed: begin again
		for _, path := range []string{walDir(cfg.Dir), dbPath(cfg.Dir)} {
			if err := os.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("start the store in %s: %w", cfg.Dir, err)
			}
		}
	}
	if err := durable.OS.Remove(markPath(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("start the store in %s: %w", cfg.Dir, err)
	}
	h := newHalt(log)
	zlog := zap.New(&slogCore{log: log}, zap.WithFatalHook(h))
	srv, err := newServer(cfg, zlog)
	if err != nil {
		return nil, fmt.Errorf("start the store in %s: %w", cfg.Dir, err)
	}
	s := &Store{cfg: cfg, log: log, srv: srv, kv: srv.KV(), lock: lock, halt: h}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.gate = newGate(cfg, srv.Backend().SizeInUse, srv.Backend().Size)
	h.serving.Store(true)
	srv.Start()

	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-srv.ReadyNotify():
	case <-h.ctx.Done():
		err = h.err()
	case <-srv.StopNotify():
		err = fault.New(fault.Internal, "the server in %s stopped while starting", cfg.Dir)
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = fault.New(fault.Unavailable, "the server in %s was not ready within %s", cfg.Dir, startTimeout)
	}
	if err != nil {
		s.cancel()
		s.stopServer()
		return nil, fmt.Errorf("start the store in %s: %w", cfg.Dir, err)
	}
	s.wg.Go(s.maintain)
	return s, nil
}

// newServer turns etcd's exits and panics while it opens files into errors.
func newServer(cfg Config, zlog *zap.Logger) (srv *etcdserver.EtcdServer, err error) {
	defer func() {
		if p := recover(); p != nil {
			srv, err = nil, fault.New(fault.Internal, "%v", p)
		}
	}()
	// Nobody listens there: the URL only names the member.
	self, err := types.NewURLs([]string{"unix://embedded.legation:0"})
	if err != nil {
		return nil, err
	}
	return etcdserver.NewServer(config.ServerConfig{
		Name:                        "legation",
		DataDir:                     cfg.Dir,
		PeerURLs:                    self,
		ClientURLs:                  self,
		InitialPeerURLsMap:          types.URLsMap{"legation": self},
		InitialClusterToken:         "legation",
		NewCluster:                  true,
		TickMs:                      tick,
		ElectionTicks:               electionTicks,
		SnapshotCount:               cfg.snapEvery,
		SnapshotCatchUpEntries:      16, // nobody has to catch up
		MaxSnapFiles:                maxFiles,
		MaxWALFiles:                 maxFiles,
		BackendBatchInterval:        batchInterval,
		MaxTxnOps:                   store.MaxOps,
		MaxRequestBytes:             maxRequestBytes,
		QuotaBackendBytes:           -1, // gate is exact and needs no alarm to be lifted by hand
		WarningApplyDuration:        time.Second,
		WarningUnaryRequestDuration: 2 * time.Second,
		StrictReconfigCheck:         true,
		BcryptCost:                  10, // unused; etcd warns without one
		MaxLearners:                 1,
		V2Deprecation:               config.V2DeprDefault,
		Metrics:                     "basic",
		ServerFeatureGate:           features.NewDefaultServerFeatureGate("legation", zlog),
		// A page file that is mostly holes after a large compaction is
		// rewritten at the next start.
		BootstrapDefragThresholdMegabytes: 256,
		Logger:                            zlog,
	})
}

// Close stops the server and ends all watches. It is safe to call twice.
func (s *Store) Close() error {
	s.cancel() // calls under way end
	s.open.Lock()
	if s.closed {
		s.open.Unlock()
		return nil
	}
	s.closed = true
	s.open.Unlock()
	s.wg.Wait()
	defer s.lock.Release()
	s.stopServer()
	if s.halt.err() != nil {
		return nil // no mark: the next start looks for itself
	}
	if err := writeMark(s.cfg.Dir); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

func (s *Store) stopServer() {
	stopped := make(chan struct{})
	go func() { // ends with HardStop
		defer close(stopped)
		s.srv.HardStop()
	}()
	select {
	case <-stopped:
	case <-s.halt.ctx.Done():
		// Goroutines of etcd's stand still with their locks held and cannot
		// be waited for: the process is expected to end.
	}
}

// Failed is closed when the disk failed under the server. Writes are refused
// from then on; the process should end and be started anew.
func (s *Store) Failed() <-chan struct{} { return s.halt.ctx.Done() }

// makeDirs makes the folders before etcd does, with their modes, and sees to
// it that no file in them is ever readable by others. A directory that the
// caller made keeps its mode: what lies in it directly is 0600.
func makeDirs(dir string) error {
	member := filepath.Join(dir, "member")
	if err := durable.OS.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	for _, d := range []string{member, filepath.Join(member, "snap")} {
		if err := durable.OS.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
		if err := os.Chmod(d, 0o700); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
		if err := denyOthers(d); err != nil {
			return err
		}
	}
	return nil
}

var _ store.Store = (*Store)(nil)
