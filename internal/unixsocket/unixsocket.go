// Package unixsocket listens on Unix sockets: with the right mode before the
// first connection, never stealing a socket that somebody serves.
package unixsocket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// Listen makes a socket at path with the mode. A socket that a killed process
// left behind is replaced; one that somebody serves is fault.Conflict, and a
// file of another kind is left alone. The folder is made 0755 when absent.
func Listen(path string, mode os.FileMode) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fault.New(fault.Invalid, "make the folder of socket %s: %w", path, err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&os.ModeSocket == 0 {
			return nil, fault.New(fault.Conflict, "%s exists and is not a socket; move it away or choose another path", path)
		}
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			conn.Close()
			return nil, fault.New(fault.Conflict, "somebody serves %s already; stop that process or choose another path", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fault.New(fault.Conflict, "%s is in use: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket that was left at %s: %w", path, err)
		}
	}
	// Bound under a temporary name inside a folder that is ours alone, so that
	// nobody connects before the mode is set.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fault.New(fault.Invalid, "make socket %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	inner := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: inner, Net: "unix"})
	if err != nil {
		return nil, fault.New(fault.Invalid, "make socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(inner, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("guard socket %s: %w", path, err)
	}
	if err := os.Rename(inner, path); err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	made, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	return &listener{UnixListener: l, path: path, made: made}, nil
}

// listener removes its path when it is closed, unless another socket has
// taken it: whoever is started meanwhile finds nobody listening.
type listener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err != nil {
		return err
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
		os.Remove(l.path)
	}
	return nil
}
