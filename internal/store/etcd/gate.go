package etcd

import (
	"errors"
	"os"
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
	end     func() int64                            // bytes of the page file in use or to be used again
	free    func(dir string) (bytes int64, _ error) // of the disk

	full chan struct{} // holds a token after a refusal: maintain makes room

	mu       sync.Mutex // guards all below
	seen     int64      // inUse at the last admission
	admitted int64      // bytes admitted since inUse last changed
	checked  time.Time  // of the disk
	diskFree int64      // then, less what was admitted since
	backed   int64      // bytes of the page file that have their place on the disk
}

const (
	// opCost is what an operation costs beyond its key and value.
	opCost = 256
	// The disk is asked again after this long, or sooner when little is left.
	diskRecheck = 100 * time.Millisecond
	// backAhead is how much room is taken at once, and half of it always there.
	backAhead = 16 << 20
)

func newGate(cfg Config, inUse, end func() int64) *gate {
	return &gate{
		dir: cfg.Dir, quota: cfg.QuotaBytes, reserve: cfg.ReserveBytes,
		inUse: inUse, end: end, free: diskFree, full: make(chan struct{}, 1),
	}
}

// admit lets transactions that only delete pass over the quota and into half
// of the reserve: they are how room is made.
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
	if used := g.inUse(); used != g.seen {
		g.seen, g.admitted = used, 0
	}
	reserve := g.reserve
	if !puts {
		reserve /= 2
	}
	if err := g.diskLocked(cost, reserve); err != nil {
		return err
	}
	if err := g.backLocked(cost); err != nil {
		return err
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
func (g *gate) diskLocked(cost, reserve int64) error {
	if now := time.Now(); now.Sub(g.checked) > diskRecheck || g.diskFree-2*cost < reserve {
		free, err := g.free(g.dir)
		if err != nil {
			return fault.New(fault.Unavailable, "see how much disk is free at %s: %w", g.dir, err)
		}
		g.checked, g.diskFree = now, free
	}
	if g.diskFree-2*cost < reserve {
		return fault.New(fault.Limited, "the disk of %s is full: %d bytes are free and %d are kept in reserve; nothing was written: free some", g.dir, g.diskFree, reserve)
	}
	g.diskFree -= 2 * cost
	return nil
}

// backLocked takes room on the disk for the pages that will be written some
// time after the commit is acknowledged: another program that fills the disk
// in between must not stop them. The log takes its room itself.
func (g *gate) backLocked(cost int64) error {
	want := g.end() + g.admitted + cost + backAhead/2
	if want <= g.backed {
		return nil
	}
	want += backAhead / 2
	f, err := os.OpenFile(dbPath(g.dir), os.O_RDWR, 0)
	if err != nil {
		return fault.New(fault.Unavailable, "take room on the disk: %w", err)
	}
	defer f.Close()
	switch err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, want); {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.Limited, "the disk of %s is full: %w; nothing was written: free some", g.dir, err)
	case err != nil && !errors.Is(err, unix.EOPNOTSUPP):
		return fault.New(fault.Unavailable, "take room on the disk at %s: %w", g.dir, err)
	}
	g.backed = want
	return nil
}

func diskFree(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}
