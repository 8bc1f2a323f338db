//go:build unix

package folder

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes a lock that ends with the process, whatever ends it; errLocked is
// the error when somebody else has it.
func lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, errLocked
		default:
			f.Close()
			return nil, err
		}
	}
}
