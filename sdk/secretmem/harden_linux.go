package secretmem

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Harden makes the whole process undumpable (PR_SET_DUMPABLE 0: its
// /proc/<pid> belongs to root, and no process of the same user may trace it),
// sets the core file limit to zero, and locks its memory as it is touched
// when the memory lock limit is unlimited. It must be called before
// secrets are made. A program that is executed later starts dumpable again.
// The error names each step that failed; the steps are independent.
func Harden() error {
	var failed []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		failed = append(failed, fmt.Errorf("make the process undumpable: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		failed = append(failed, fmt.Errorf("set the core file limit to 0: %w", err))
	}
	// With a finite limit, locking everything would make later allocations
	// of the runtime fail; then only the pages of this package are locked.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && limit.Cur == math.MaxUint64 {
		if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
			failed = append(failed, fmt.Errorf("lock the process's memory: %w", err))
		}
	}
	return errors.Join(failed...)
}
