package durable

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legation-io/legation/internal/fault"
)

// lockWait is how long a predecessor may take to die.
const lockWait = time.Second

// A DirLock keeps a second process out of a data directory. The kernel drops it
// with the process, however that ends.
type DirLock struct{ f *os.File }

// LockDir takes the lock of a data directory, waiting briefly for a predecessor
// that is about to end. fault.Unavailable names who holds it.
func LockDir(ctx context.Context, dir string) (*DirLock, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	for begin := time.Now(); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
		}
		if time.Since(begin) > lockWait {
			defer f.Close()
			return nil, fault.New(fault.Unavailable, "the data directory %s is in use by %s: stop that first, or give another directory", dir, holder(f))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
	// Who holds it, for the message above; never relied upon.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return &DirLock{f}, nil
}

func holder(f *os.File) string {
	buf := make([]byte, 16)
	n, _ := f.ReadAt(buf, 0)
	if pid := bytes.TrimSpace(buf[:n]); len(pid) > 0 {
		return "process " + string(pid)
	}
	return "another process"
}

// Release lets another process in.
func (l *DirLock) Release() { l.f.Close() }
