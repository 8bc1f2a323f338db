//go:build unix

package secretmem

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mapRegion returns size bytes of their own pages, and whether they are
// locked.
func mapRegion(size int) (region []byte, locked bool, err error) {
	region, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, false, fmt.Errorf("map %d bytes for secrets: %w", size, err)
	}
	locked = unix.Mlock(region) == nil // served all the same; Locked tells
	advise(region)
	return region, locked, nil
}

func unmapRegion(region []byte) error { return unix.Munmap(region) }
