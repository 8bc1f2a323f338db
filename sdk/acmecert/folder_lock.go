//go:build unix

package acmecert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func (f *Folder) lockPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(f.root, locks, hex.EncodeToString(sum[:16]))
}

// Lock implements Storage: by flock(2), which the kernel takes back when the
// process ends, however it ends. Lock files stay, and are empty.
func (f *Folder) Lock(ctx context.Context, name string) error {
	path := f.lockPath(name)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	timer := time.NewTicker(lockPoll)
	defer timer.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.held[path] = file
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			file.Close()
			return fmt.Errorf("lock %s, which another holds: %w", name, context.Cause(ctx))
		}
	}
}

// Unlock implements Storage.
func (f *Folder) Unlock(_ context.Context, name string) error {
	path := f.lockPath(name)
	f.mu.Lock()
	file := f.held[path]
	delete(f.held, path)
	f.mu.Unlock()
	if file == nil {
		return fmt.Errorf("unlock %s: it is not locked here", name)
	}
	return file.Close()
}
