//go:build unix

package durable

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Owned refuses a folder, or a link to one, that is another user's: root may do
// everything there, and so may its owner. Links may be root's.
func Owned(dir string) error {
	for _, look := range []func(string) (fs.FileInfo, error){os.Lstat, os.Stat} {
		info, err := look(dir)
		if err != nil {
			return err
		}
		s, ok := info.Sys().(*syscall.Stat_t)
		if ok && int(s.Uid) != os.Geteuid() && (info.IsDir() || s.Uid != 0) {
			return fmt.Errorf("%s belongs to uid %d, who may read and replace what is in it: chown it to uid %d, or name another", dir, s.Uid, os.Geteuid())
		}
	}
	return nil
}
