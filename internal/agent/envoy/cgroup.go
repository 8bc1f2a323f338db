package envoy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// cgroup is an Envoy's own control group, below that of its parent: what
// counts, limits or freezes the program leaves its proxy alone, and the other
// way round.
type cgroup struct {
	dir     string
	unified *os.File // of version 2: processes are born into it
}

// newCgroup makes one below this process's own. Where version 2 is not
// mounted, or not writable, it takes a hierarchy of version 1.
func newCgroup(name string) (*cgroup, error) {
	memberships, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "an own control group: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "an own control group: %w", err)
	}
	var problems error
	for _, h := range hierarchies(string(memberships), string(mounts)) {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			problems = errors.Join(problems, err)
			continue
		}
		sweep(h.dir)
		c := &cgroup{dir: dir}
		if h.unified {
			if c.unified, err = os.Open(dir); err != nil {
				problems = errors.Join(problems, err, os.Remove(dir))
				continue
			}
		}
		return c, nil
	}
	if problems == nil {
		problems = errors.New("no hierarchy is mounted that could have one")
	}
	return nil, fault.New(fault.Unavailable, "an own control group: %w", problems)
}

// CgroupName is what Process calls the group of this process's Envoy.
func CgroupName(session string) string {
	return fmt.Sprintf("%s%d-%s", cgroupPrefix, os.Getpid(), session)
}

const cgroupPrefix = "legation-envoy-"

// sweep removes the groups whose makers were killed. The kernel keeps one
// that has a process.
func sweep(dir string) {
	groups, _ := filepath.Glob(filepath.Join(dir, cgroupPrefix+"*"))
	for _, group := range groups {
		maker, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(group), cgroupPrefix), "-")
		if pid, err := strconv.Atoi(maker); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.Remove(group)
		}
	}
}

// hierarchy is the folder of this process in one of them.
type hierarchy struct {
	dir     string
	unified bool
	rank    int
}

// preferred hierarchies of version 1: in these a new group needs no values.
var preferred = []string{"name=systemd", "pids", "memory", "cpu", "freezer", "devices"}

// hierarchies are those a process may make a group in, best first.
func hierarchies(memberships, mounts string) []hierarchy {
	var all []hierarchy
	for line := range strings.Lines(memberships) {
		// cgroups(7): ID:CONTROLLERS:PATH
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || strings.Contains(parts[2], "..") {
			continue
		}
		h := hierarchy{unified: parts[0] == "0" && parts[1] == "", rank: -1}
		controllers := strings.Split(parts[1], ",")
		if !h.unified {
			h.rank = slices.IndexFunc(preferred, func(p string) bool { return slices.Contains(controllers, p) })
			if h.rank < 0 {
				continue
			}
		}
		if h.dir = mounted(mounts, controllers, h.unified, parts[2]); h.dir != "" {
			all = append(all, h)
		}
	}
	slices.SortStableFunc(all, func(a, b hierarchy) int { return a.rank - b.rank })
	return all
}

// mounted finds the folder of a group, or "" where it is not to be seen.
func mounted(mounts string, controllers []string, unified bool, path string) string {
	for line := range strings.Lines(mounts) {
		// proc_pid_mountinfo(5): … root mountpoint … - type source options
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		if unified && kind[0] != "cgroup2" || !unified && (kind[0] != "cgroup" || !slices.Contains(strings.Split(kind[2], ","), controllers[0])) {
			continue
		}
		root, point := fields[3], fields[4]
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/"))
		if !ok || below != "" && below[0] != '/' {
			continue
		}
		return filepath.Join(point, below)
	}
	return ""
}

// born puts the next process that is started with the attributes into c.
func (c *cgroup) born(a *syscall.SysProcAttr) {
	if c != nil && c.unified != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(c.unified.Fd())
	}
}

// take moves a process that was not born in c.
func (c *cgroup) take(pid int) error {
	if c == nil || c.unified != nil {
		return nil
	}
	if err := os.WriteFile(filepath.Join(c.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("move Envoy to its own control group: %w", err)
	}
	return nil
}

// remove waits a moment for the kernel to let go of the last process.
func (c *cgroup) remove() error {
	if c == nil {
		return nil
	}
	if c.unified != nil {
		c.unified.Close()
	}
	var err error
	for range 20 {
		if err = os.Remove(c.dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("remove Envoy's control group: %w", err)
}
