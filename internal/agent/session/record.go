package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/legation-io/legation/internal/fault"
)

// record is what lets a session outlive its agent: a later agent gives the
// same socket path to the same parent, of the same program, and to nobody
// else. It lies beside the session's folder, where only the agent writes.
type record struct {
	Boot         string   `json:"boot"`
	RunPID       int32    `json:"runPID"`
	RunStarted   uint64   `json:"runStarted"` // clock ticks since boot
	RunUID       uint32   `json:"runUID"`
	ChildPID     int32    `json:"childPID"`
	ChildStarted uint64   `json:"childStarted"`
	EnvoyUID     uint32   `json:"envoyUID"`
	SPIFFEID     string   `json:"spiffeID"`
	Known        []string `json:"known,omitempty"` // revocations that were carried out
}

const recordSuffix = ".json"

func (s *Server) recordPath(id string) string { return filepath.Join(s.p.RunDir, id+recordSuffix) }

// save replaces the record. It need not outlive the machine, only the agent.
func (s *Server) save(id string, r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	next := s.recordPath(id) + ".next"
	if err := os.WriteFile(next, raw, 0o600); err != nil {
		return fault.New(fault.Unavailable, "record session %s: %w", id, err)
	}
	return os.Rename(next, s.recordPath(id))
}

// load reads a record; fault.NotFound when no session of that id was left.
func (s *Server) load(id string) (*record, error) {
	raw, err := os.ReadFile(s.recordPath(id))
	if err != nil {
		return nil, fault.New(fault.NotFound, "session %s has ended", id)
	}
	r := new(record)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fault.New(fault.NotFound, "session %s cannot be resumed: %w", id, err)
	}
	if r.Boot != bootID() {
		return nil, fault.New(fault.NotFound, "session %s was of before the machine's last start", id)
	}
	return r, nil
}

// forget removes what a session left on disk.
func (s *Server) forget(id string) {
	os.RemoveAll(filepath.Join(s.p.RunDir, id))
	os.Remove(s.recordPath(id))
}

// lives reports whether the parent that opened the session still runs.
func (r *record) lives() bool {
	started, err := startTime(r.RunPID)
	return err == nil && started == r.RunStarted
}

// proves says why a caller is not the parent that the record names.
func (r *record) proves(sn *session) error {
	run, err := startTime(sn.runPID)
	if err != nil {
		return err
	}
	child, err := startTime(sn.start.ChildPid)
	if err != nil {
		return err
	}
	if sn.runPID != r.RunPID || run != r.RunStarted || sn.runUID != r.RunUID ||
		sn.start.ChildPid != r.ChildPID || child != r.ChildStarted || sn.start.EnvoyUid != r.EnvoyUID {
		return fault.New(fault.Denied, "resume session %s: process %d (uid %d) did not open it for program %d", sn.id, sn.runPID, sn.runUID, sn.start.ChildPid)
	}
	return nil
}

// remember writes what lets a later agent resume this session.
func (sn *session) remember() error {
	run, err := startTime(sn.runPID)
	if err != nil {
		return err
	}
	child, err := startTime(sn.start.ChildPid)
	if err != nil {
		return err
	}
	sn.record = &record{
		Boot: bootID(), RunPID: sn.runPID, RunStarted: run, RunUID: sn.runUID, ChildPID: sn.start.ChildPid, ChildStarted: child,
		EnvoyUID: sn.start.EnvoyUid, SPIFFEID: sn.entry.SpiffeId,
	}
	return sn.server.save(sn.id, sn.record)
}

// startTime tells a process from a later one with the same pid: field 22 of
// /proc/<pid>/stat.
func startTime(pid int32) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fault.New(fault.Denied, "process %d has ended", pid)
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // the name before may hold anything
	if len(fields) < 20 {
		return 0, fault.New(fault.Internal, "/proc/%d/stat is not understood", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw))
}
