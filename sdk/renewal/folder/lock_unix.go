//go:build unix

package folder

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes a lock that ends with the process, whatever ends it.
func lock(path string, wait bool) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		switch err = unix.Flock(int(f.Fd()), how); {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, errors.New("it is locked")
		default:
			f.Close()
			return nil, err
		}
	}
}
