package session

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// Sweep removes what sessions left in RunDir that nobody is in any more. The
// folder of a session whose Envoy lives stays: it is resumed. Call it before
// the first session.
func (s *Server) Sweep() error {
	entries, err := os.ReadDir(s.p.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "look at the folder of sessions: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(s.p.RunDir, e.Name())
		if conn, err := net.DialTimeout("unix", filepath.Join(dir, "admin.sock"), time.Second); err == nil {
			conn.Close()
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fault.New(fault.Unavailable, "remove what a session left: %w", err)
		}
	}
	return nil
}

// prepareDir makes the session's private folder for its Envoy's user. One to
// be resumed may be there already, if it is that user's.
func prepareDir(dir string, uid uint32, resume bool) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fault.New(fault.Unavailable, "make the folder of sessions: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if resume && errors.Is(err, fs.ErrExist) {
		return resumeDir(dir, uid)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "make the session's folder: %w", err)
	}
	if int(uid) != os.Geteuid() {
		if err := os.Chown(dir, int(uid), -1); err != nil {
			os.RemoveAll(dir)
			return fault.New(fault.Denied, "this agent may not give a session's socket to uid %d (%v); run the agent as root, or sessions as the agent's user", uid, err)
		}
	}
	return nil
}

// resumeDir takes over a folder that is there: the last agent's socket in it
// goes, the Envoy's own stays.
func resumeDir(dir string, uid uint32) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fault.New(fault.Unavailable, "look at the session's folder: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || st.Uid != uid {
		return fault.New(fault.Denied, "resume a session: its folder is not of uid %d", uid)
	}
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "remove the socket of the last agent: %w", err)
	}
	return nil
}
