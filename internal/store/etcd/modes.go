package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// denyOthers gives a folder a default ACL of u::rwx,g::---,o::---, which
// takes the place of the umask for the files made in it: etcd writes its
// *.snap files with mode 0666. Where the file system knows no ACLs the mode
// 0700 of the folder has to do.
func denyOthers(dir string) error {
	// linux/posix_acl_xattr.h: version 2, then (tag, permissions, id) each.
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct{ tag, perm uint16 }{{0x01, 7}, {0x04, 0}, {0x20, 0}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, 0xffffffff)
	}
	err := unix.Setxattr(dir, "system.posix_acl_default", acl, 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set the default modes of %s: %w", dir, err)
	}
	return nil
}
