package workload

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// OpenExec opens what the stopped process c holds at a file descriptor and is
// about to execute. The descriptor is only looked at first: opening a pipe
// would wait for whoever c likes, opening a device may do something, and a
// descriptor can be had of a file that c may neither read nor execute.
// fault.Denied when c has no such descriptor or may not execute the file,
// fault.Invalid when it is no regular file.
func OpenExec(c *Caller, fd int) (*os.File, error) {
	at := procPath(c.pid, "fd/"+strconv.Itoa(fd))
	looked, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Denied, "look at what process %d is about to execute: %w", c.pid, err)
	}
	defer unix.Close(looked)
	var st unix.Stat_t
	if err := unix.Fstat(looked, &st); err != nil {
		return nil, fmt.Errorf("look at what process %d is about to execute: %w", c.pid, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fault.New(fault.Invalid, "what process %d is about to execute is not a regular file and cannot be attested", c.pid)
	}
	status, err := readStatus(c.pid)
	if err != nil {
		return nil, fault.New(fault.Denied, "process %d: %w", c.pid, err)
	}
	if err := mayExecute(looked, &st, &status); err != nil {
		return nil, fault.New(fault.Denied, "process %d may not execute the file that it holds: %w", c.pid, err)
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(looked), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.New(fault.Denied, "read what process %d is about to execute: %w", c.pid, err)
	}
	return f, nil
}

// mayExecute is the kernel's rule for the file itself, path_resolution(7).
// With an access control list the group's bits are only its mask: the list's
// entries are not read, so who is not the owner must be among "other".
func mayExecute(fd int, st *unix.Stat_t, s *status) error {
	bits, whose := st.Mode&0o001, "others"
	switch {
	case s.uid == 0:
		bits, whose = st.Mode&0o111, "root"
	case s.uid == st.Uid:
		bits, whose = st.Mode&0o100, "its owner"
	case s.gid == st.Gid || slices.Contains(s.groups, st.Gid):
		bits, whose = st.Mode&0o010, "its group"
		if listed(fd) {
			bits, whose = bits&(st.Mode<<3), "its group and others, since it has an access control list"
		}
	case listed(fd):
		whose = "others; entries of its access control list are not looked at"
	}
	if bits == 0 {
		return fmt.Errorf("mode %#o has no x for %s", st.Mode&0o7777, whose)
	}
	return nil
}

// listed reports whether a file has an access control list.
func listed(fd int) bool {
	_, err := unix.Getxattr("/proc/self/fd/"+strconv.Itoa(fd), "system.posix_acl_access", nil)
	return err == nil || !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
}
