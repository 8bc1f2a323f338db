package workload

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// attempts bounds how often a process that executes while it is read is read
// anew.
const attempts = 5

// Selectors reads what is true of the process now: sorted, without doubles.
// That it lived through the reading is checked afterwards by pidfd, and that
// it did not execute another program meanwhile by its executable.
// fault.Denied when it ended or its uid is not the one that connected.
//
// unix:path is given only if the agent finds the same file under that path:
// a process in a mount namespace of its own can call its executable anything,
// and after an upgrade the old program is not what the path names.
func (c *Caller) Selectors(ctx context.Context) ([]Selector, error) {
	all, err := c.selectors(ctx, nil, "")
	c.a.count(err)
	return all, err
}

func (a *Attestor) count(err error) {
	outcome := "attested"
	if err != nil {
		outcome = "refused"
	}
	a.attested.WithLabelValues(outcome).Inc()
}

// SelectorsForExec are the selectors c will have once it has executed the
// file: its own uid, gid, groups and cgroup with the path and content of the
// file. c is a stopped child; after it executed, Recheck compares what it
// runs with the file. The file must be a regular one and no script
// (fault.Invalid); path is dropped if it does not name it.
func SelectorsForExec(ctx context.Context, c *Caller, exec *os.File, path string) ([]Selector, error) {
	all, err := c.selectors(ctx, exec, path)
	c.a.count(err)
	return all, err
}

func (c *Caller) selectors(ctx context.Context, exec *os.File, path string) ([]Selector, error) {
	for range attempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all, again, err := c.readSelectors(ctx, exec, path)
		if err != nil && !c.Alive() {
			return nil, gone(c.pid)
		}
		if !again {
			return all, err
		}
	}
	return nil, fault.New(fault.Denied, "the process (pid %d) kept executing other programs while it was attested", c.pid)
}

func (c *Caller) readSelectors(ctx context.Context, exec *os.File, path string) (all []Selector, again bool, err error) {
	running, err := exeID(c.pid)
	if err != nil {
		return nil, false, fmt.Errorf("attest process %d: %w", c.pid, err)
	}
	st, err := readStatus(c.pid)
	if err != nil {
		return nil, false, fmt.Errorf("attest process %d: %w", c.pid, err)
	}
	cgroups, err := readCgroups(c.pid)
	if err != nil {
		return nil, false, fmt.Errorf("attest process %d: %w", c.pid, err)
	}
	want := c.a.want()
	all = append(credentialSelectors(&st, &c.a.names, want.Names), cgroups...)

	executable := running
	if exec != nil {
		if executable, err = execID(exec); err != nil {
			return nil, false, err
		}
	} else if path, err = os.Readlink(procPath(c.pid, "exe")); err != nil {
		return nil, false, fmt.Errorf("attest process %d: its executable's path: %w", c.pid, err)
	}
	if names(path, executable) {
		all = append(all, "unix:path:"+path)
	}
	if want.SHA256 && executable.size <= maxHashed {
		file := procPath(c.pid, "exe")
		if exec != nil {
			file = "/proc/self/fd/" + strconv.Itoa(int(exec.Fd()))
		}
		sum, err := c.a.hashes.sum(ctx, c.UID(), file, executable)
		if err != nil {
			return nil, false, fmt.Errorf("attest process %d: %w", c.pid, err)
		}
		all = append(all, "unix:sha256:"+hex.EncodeToString(sum[:]))
	}

	// Only now: the pid was this process's all the time, and it ran this file.
	if after, err := exeID(c.pid); err != nil || after != running {
		return nil, true, err
	}
	if c.tcp != nil {
		if err := c.tcp.recheck(c.pid); err != nil {
			return nil, false, err
		}
	}
	if !c.Alive() {
		return nil, false, gone(c.pid)
	}
	if uid := c.UID(); c.sameUID && st.uid != uid {
		return nil, false, fault.New(fault.Denied, "the process (pid %d) connected as uid %d and runs as uid %d now; connect again", c.pid, uid, st.uid)
	}
	// By executing a set-gid program, with a copy of the connection elsewhere.
	if gid := c.GID(); c.sameUID && st.gid != gid {
		return nil, false, fault.New(fault.Denied, "the process (pid %d) connected as gid %d and runs as gid %d now; connect again", c.pid, gid, st.gid)
	}
	c.mu.Lock()
	c.exe = &executable
	if !c.sameUID {
		c.uid, c.gid = st.uid, st.gid
	}
	c.mu.Unlock()
	slices.Sort(all)
	return slices.Compact(all), false, nil
}

// execID refuses what could change its content between hashing and running
// by not being a file.
func execID(f *os.File) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, fmt.Errorf("look at the executable: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, fault.New(fault.Invalid, "%s is not a regular file and cannot be attested", f.Name())
	}
	var start [2]byte
	if n, _ := f.ReadAt(start[:], 0); n == 2 && string(start[:]) == "#!" {
		return fileID{}, fault.New(fault.Invalid, "%s is a script: what runs is its interpreter; start that, with the script as its argument", f.Name())
	}
	id := idOf(&st)
	id.ctime = unix.Timespec{}
	return id, nil
}

// names reports whether the agent finds this file under the path.
func names(path string, id fileID) bool {
	var st unix.Stat_t
	return len(path) > 0 && path[0] == '/' && unix.Stat(path, &st) == nil &&
		uint64(st.Dev) == id.dev && st.Ino == id.inode
}

func credentialSelectors(st *status, names *nameCache, wantNames bool) []Selector {
	all := make([]Selector, 0, 12+2*len(st.groups))
	all = append(all,
		"unix:uid:"+strconv.FormatUint(uint64(st.uid), 10),
		"unix:gid:"+strconv.FormatUint(uint64(st.gid), 10))
	for _, g := range st.groups {
		all = append(all, "unix:supplementary_gid:"+strconv.FormatUint(uint64(g), 10))
	}
	if !wantNames {
		return all
	}
	if n := names.user(st.uid); n != "" {
		all = append(all, "unix:user:"+n)
	}
	if n := names.group(st.gid); n != "" {
		all = append(all, "unix:group:"+n)
	}
	for _, g := range st.groups {
		if n := names.group(g); n != "" {
			all = append(all, "unix:supplementary_group:"+n)
		}
	}
	return all
}
