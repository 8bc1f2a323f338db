//go:build !linux

package secretmem

import (
	"errors"
	"fmt"
	"runtime"
)

// Harden makes the process undumpable on Linux; here it does nothing, and says
// so: this system has no such switch that a program could set for itself.
func Harden() error {
	return fmt.Errorf("harden the process on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
