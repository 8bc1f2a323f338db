package workload

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fileID tells whether two looks saw the same file with the same content.
type fileID struct {
	dev, inode   uint64
	mtime, ctime unix.Timespec
	size         int64
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{uint64(st.Dev), st.Ino, st.Mtim, st.Ctim, st.Size}
}

// exeID looks through /proc/<pid>/exe at the file itself, whatever its name
// is now.
func exeID(pid int32) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(procPath(pid, "exe"), &st); err != nil {
		return fileID{}, fmt.Errorf("its executable: %w", err)
	}
	id := idOf(&st)
	id.ctime = unix.Timespec{} // a rename or a new link is no other program
	return id, nil
}

func procPath(pid int32, name string) string {
	return "/proc/" + strconv.Itoa(int(pid)) + "/" + name
}

// status is what /proc/<pid>/status says of credentials.
type status struct {
	uid, gid uint32 // effective
	groups   []uint32
}

func readStatus(pid int32) (status, error) {
	raw, err := os.ReadFile(procPath(pid, "status"))
	if err != nil {
		return status{}, fmt.Errorf("its credentials: %w", err)
	}
	return parseStatus(raw)
}

// parseStatus reads proc_pid_status(5). The process chooses its own Name
// line; the kernel escapes newlines in it.
func parseStatus(raw []byte) (status, error) {
	var s status
	var haveUID, haveGID, haveGroups bool
	for line := range bytes.Lines(raw) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		var err error
		switch string(key) {
		case "Uid":
			s.uid, err = secondID(value)
			haveUID = true
		case "Gid":
			s.gid, err = secondID(value)
			haveGID = true
		case "Groups":
			haveGroups = true
			for _, f := range strings.Fields(string(value)) {
				g, err := strconv.ParseUint(f, 10, 32)
				if err != nil {
					return status{}, fmt.Errorf("its groups: %w", err)
				}
				s.groups = append(s.groups, uint32(g))
			}
		}
		if err != nil {
			return status{}, fmt.Errorf("its credentials: %w", err)
		}
	}
	if !haveUID || !haveGID || !haveGroups {
		return status{}, fmt.Errorf("its credentials: /proc gave no Uid, Gid and Groups")
	}
	return s, nil
}

// secondID picks the effective id of "real effective saved filesystem".
func secondID(value []byte) (uint32, error) {
	f := strings.Fields(string(value))
	if len(f) != 4 {
		return 0, fmt.Errorf("%d ids in a line of /proc/<pid>/status, want 4", len(f))
	}
	id, err := strconv.ParseUint(f[1], 10, 32)
	return uint32(id), err
}

// parseStartTime skips the name, which may hold spaces and parentheses.
func parseStartTime(raw []byte) (uint64, error) {
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return 0, fmt.Errorf("/proc/<pid>/stat without a name")
	}
	f := strings.Fields(string(raw[end+1:]))
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/<pid>/stat has %d fields after the name, want 20 or more", len(f))
	}
	return strconv.ParseUint(f[19], 10, 64)
}
