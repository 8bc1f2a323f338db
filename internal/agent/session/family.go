package session

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/fault"
)

// kin is what /proc/<pid>/status says of a process's parent and rights: each
// list of ids is real, effective, saved, file system.
type kin struct {
	parent       string
	uids, gids   []string
	supplemented []string
}

func kinOf(pid int32) (kin, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return kin{}, fault.New(fault.Denied, "process %d is gone", pid)
	}
	var k kin
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "PPid":
			k.parent = strings.TrimSpace(value)
		case "Uid":
			k.uids = strings.Fields(value)
		case "Gid":
			k.gids = strings.Fields(value)
		case "Groups":
			k.supplemented = strings.Fields(value)
		}
	}
	if k.parent == "" || len(k.uids) != 4 || len(k.gids) != 4 {
		return kin{}, fault.New(fault.Denied, "process %d: /proc says nothing of its parent and its user", pid)
	}
	return k, nil
}

// childOf returns fault.Denied unless pid, which the caller of childOf holds
// by pidfd, is a child of the parent that lives.
func childOf(pid int32, parent *workload.Caller) (kin, error) {
	k, err := kinOf(pid)
	if err != nil {
		return k, err
	}
	if k.parent != fmt.Sprint(parent.PID()) {
		return k, fault.New(fault.Denied, "process %d is not a child of the caller (pid %d)", pid, parent.PID())
	}
	if !parent.Alive() { // else the pid may be another's by now
		return k, fault.New(fault.Denied, "the caller (pid %d) has ended", parent.PID())
	}
	return k, nil
}

// mayBear returns fault.Denied when a child has rights that its parent does
// not have: a session gives the parent what the child may have, and every
// user can be the parent of a set-uid program.
func mayBear(pid int32, child kin, parent *workload.Caller) error {
	if parent.UID() == 0 {
		return nil
	}
	uid, gid := fmt.Sprint(parent.UID()), fmt.Sprint(parent.GID())
	if slices.ContainsFunc(child.uids, func(id string) bool { return id != uid }) {
		return fault.New(fault.Denied, "process %d has the uids %s and its parent, who opens the session, the uid %s; start it without sudo or a set-uid bit, or open the session as root", pid, strings.Join(slices.Compact(child.uids), " "), uid)
	}
	own, err := kinOf(parent.PID())
	if err != nil {
		return err
	}
	if !parent.Alive() {
		return fault.New(fault.Denied, "the caller (pid %d) has ended", parent.PID())
	}
	groups := append(own.supplemented, gid)
	for _, id := range append(child.gids, child.supplemented...) {
		if !slices.Contains(groups, id) {
			return fault.New(fault.Denied, "process %d is in group %s and its parent, who opens the session, is not; start it without a set-gid bit, or open the session as root", pid, id)
		}
	}
	return nil
}
