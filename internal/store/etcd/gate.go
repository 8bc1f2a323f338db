package etcd

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// gate refuses what would not fit, before anything is written: data in use
// beyond the quota, and a disk with less free than the reserve. etcd itself
// would raise an alarm that somebody has to lift, or end the process in the
// middle of a write.
type gate struct {
	dir     string
	quota   int64
	reserve int64
	inUse   func() int64                            // bytes of pages in use, as of the last batch
	free    func(dir string) (bytes int64, _ error) // of the disk

	full chan struct{} // holds a token after a refusal: maintain makes room

	mu       sync.Mutex // guards all below
	seen     int64      // inUse at the last admission
	admitted int64      // bytes admitted since inUse last changed
	checked  time.Time  // of the disk
	diskFree int64      // then, less what was admitted since
}

const (
	// opCost is what an operation costs beyond its key and value.
	opCost = 256
	// The disk is asked again after this long, or sooner when little is left.
	diskRecheck = 100 * time.Millisecond
)

func newGate(cfg Config, inUse func() int64) *gate {
	return &gate{
		dir: cfg.Dir, quota: cfg.QuotaBytes, reserve: cfg.ReserveBytes,
		inUse: inUse, free: diskFree, full: make(chan struct{}, 1),
	}
}

// admit lets transactions that only delete pass over the quota: they are how
// room is made.
func (g *gate) admit(txn store.Txn) error {
	cost, puts := int64(0), false
	for _, op := range txn.Then {
		cost += int64(len(op.Key)+len(op.Value)) + opCost
		puts = puts || !op.Delete
	}
	if cost == 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.diskLocked(cost); err != nil {
		return err
	}
	if used := g.inUse(); used != g.seen {
		g.seen, g.admitted = used, 0
	}
	if puts && g.seen+g.admitted+cost > g.quota {
		select {
		case g.full <- struct{}{}:
		default:
		}
		return fault.New(fault.Limited, "the store is full: %d of %d bytes are in use (store quota); nothing was written: delete what is not needed or raise the quota",
			g.seen+g.admitted, g.quota)
	}
	g.admitted += cost
	return nil
}

// diskLocked counts each byte twice: once for the log, once for the pages.
func (g *gate) diskLocked(cost int64) error {
	if now := time.Now(); now.Sub(g.checked) > diskRecheck || g.diskFree-2*cost < g.reserve {
		free, err := g.free(g.dir)
		if err != nil {
			return fault.New(fault.Unavailable, "see how much disk is free at %s: %w", g.dir, err)
		}
		g.checked, g.diskFree = now, free
	}
	if g.diskFree-2*cost < g.reserve {
		return fault.New(fault.Limited, "the disk of %s is full: %d bytes are free and %d are kept in reserve; nothing was written: free some", g.dir, g.diskFree, g.reserve)
	}
	g.diskFree -= 2 * cost
	return nil
}

func diskFree(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
