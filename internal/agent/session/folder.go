package session

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/legation-io/legation/internal/fault"
)

// Sweep removes what sessions left in RunDir whose parent is gone. What the
// others left stays: they are resumed. Call it before the first session.
func (s *Server) Sweep() error {
	entries, err := os.ReadDir(s.p.RunDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "look at the folder of sessions: %w", err)
	}
	for _, e := range entries {
		if r, err := s.load(strings.TrimSuffix(e.Name(), recordSuffix)); err == nil && r.lives() {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.p.RunDir, e.Name())); err != nil {
			return fault.New(fault.Unavailable, "remove what a session left: %w", err)
		}
	}
	return nil
}

// prepareDir makes the session's private folder for its Envoy's user.
func prepareDir(dir string, uid uint32) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fault.New(fault.Unavailable, "make the folder of sessions: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fault.New(fault.Unavailable, "make the session's folder: %w", err)
	}
	if err := own(dir, uid); err != nil {
		os.RemoveAll(dir)
		return err
	}
	return nil
}

// own gives a file, whose name only this agent can change, to an Envoy's user.
func own(path string, uid uint32) error {
	if int(uid) == os.Geteuid() {
		return nil
	}
	if err := os.Lchown(path, int(uid), -1); err != nil {
		return fault.New(fault.Denied, "this agent may not give a session's socket to uid %d (%v); run the agent as root, or sessions as the agent's user", uid, err)
	}
	return nil
}

// listen makes the session's socket, for its Envoy's user alone, in place of
// one that an agent left. It is made where only the agent may change names:
// what lies in the session's folder is that user's to replace, also by a link
// to what is not his.
func (sn *session) listen() (net.Listener, error) {
	temporary, err := os.MkdirTemp(sn.server.p.RunDir, ".s")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "listen for the session's Envoy: %w", err)
	}
	defer os.RemoveAll(temporary)
	inner := filepath.Join(temporary, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: inner, Net: "unix"})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "listen for the session's Envoy: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(inner, 0o600); err != nil {
		l.Close()
		return nil, fault.New(fault.Unavailable, "guard the session's socket: %w", err)
	}
	if err := own(inner, sn.start.EnvoyUid); err != nil {
		l.Close()
		return nil, err
	}
	if err := os.Rename(inner, sn.socket()); err != nil {
		l.Close()
		return nil, fault.New(fault.Unavailable, "place the session's socket: %w", err)
	}
	return l, nil
}
