//go:build unix

package durable

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Owned refuses a folder, or a link to one, that is another user's: root may do
// everything there, and so may its owner. Links may be root's. Where a file
// system says that what we make is another's (NFS for root, mounts for one
// user), that user is us.
func Owned(dir string) error {
	for _, look := range []func(string) (fs.FileInfo, error){os.Lstat, os.Stat} {
		info, err := look(dir)
		if err != nil {
			return err
		}
		owner, ok := uid(info)
		if !ok || owner == os.Geteuid() || owner == 0 && !info.IsDir() || info.IsDir() && owner == maker(dir) {
			continue
		}
		return fmt.Errorf("%s belongs to uid %d, who may read and replace what is in it: chown it to uid %d, or name another", dir, owner, os.Geteuid())
	}
	return nil
}

func uid(info fs.FileInfo) (int, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(s.Uid), true
}

// maker is whose a file is that we make in a folder; -1 when it cannot be made.
func maker(dir string) int {
	f, err := os.CreateTemp(dir, beside)
	if err != nil {
		return -1
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		if owner, ok := uid(info); ok {
			return owner
		}
	}
	return -1
}
