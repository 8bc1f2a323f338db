package workload

import (
	"fmt"
	"os"
	"strings"
)

func readCgroups(pid int32) ([]Selector, error) {
	raw, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("its cgroup: %w", err)
	}
	return cgroupSelectors(string(raw)), nil
}

// cgroupSelectors turns /proc/<pid>/cgroup (cgroups(7)) into one selector for
// the process's cgroup and one for each folder above it: whoever is given a
// cgroup can make folders below it and move there, and stays what it is.
//
// One hierarchy speaks: the unified one when the process was put somewhere in
// it, else systemd's, else the others of version 1, which must then lie on
// one path. Where they disagree, where the path leaves the agent's cgroup
// namespace, or where the folder is deleted, there is no cgroup selector and
// no entry that asks for one matches: a name that somebody else may have
// chosen is worse than none.
func cgroupSelectors(raw string) []Selector {
	var unified, systemd, path string
	for line := range strings.Lines(raw) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			return nil
		}
		p := f[2]
		if p == "/" {
			continue
		}
		if !plainPath(p) {
			return nil
		}
		switch {
		case f[0] == "0" && f[1] == "":
			unified = p
		case f[1] == "name=systemd":
			systemd = p
		case path == "" || strings.HasPrefix(p, path+"/"):
			path = p
		case p != path && !strings.HasPrefix(path, p+"/"):
			path = "?" // two places at once
		}
	}
	switch {
	case unified != "":
		path = unified
	case systemd != "":
		path = systemd
	}
	if path == "?" || path == "" {
		return nil
	}
	var all []Selector
	for path != "" {
		all = append(all, "cgroup:"+path)
		path = path[:strings.LastIndexByte(path, '/')]
	}
	return all
}

// plainPath refuses what is not a path below the agent's root of cgroups.
func plainPath(p string) bool {
	if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, " (deleted)") {
		return false
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}
