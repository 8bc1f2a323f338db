package secretmem

import "golang.org/x/sys/unix"

// advise keeps the region out of core dumps and forked children. Kernels
// older than these advices refuse them; Harden covers dumps.
func advise(region []byte) {
	_ = unix.Madvise(region, unix.MADV_DONTDUMP)
	_ = unix.Madvise(region, unix.MADV_WIPEONFORK)
}
