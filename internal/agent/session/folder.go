package session

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/legation-io/legation/internal/fault"
)

// Sweep makes RunDir, and removes what sessions left in it whose parent is
// gone. What the others left stays: they are resumed. Call it before the first
// session. fault.Denied: somebody else could put sockets of his own there.
func (s *Server) Sweep() error {
	if err := os.MkdirAll(s.p.RunDir, 0o755); err != nil {
		return fault.New(fault.Unavailable, "make the folder of sessions: %w", err)
	}
	if err := ours(s.p.RunDir); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.p.RunDir)
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

// ours refuses a folder in which others could make or rename things, or that
// others could replace.
func ours(dir string) error {
	for _, path := range []string{dir, filepath.Dir(dir)} {
		look := os.Lstat
		if path != dir { // /var/run is a link
			look = os.Stat
		}
		info, err := look(path)
		if err != nil {
			return fault.New(fault.Unavailable, "look at the folder of sessions: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		owned := ok && (int(st.Uid) == os.Geteuid() || path != dir && st.Uid == 0)
		shared := info.Mode().Perm()&0o022 != 0 && (path == dir || info.Mode()&fs.ModeSticky == 0)
		if !info.IsDir() || !owned || shared {
			return fault.New(fault.Denied, "the folder of sessions %s: %s (%s) must be a folder of this agent's user that nobody else can write to, or others could stand in for a session's sockets; change it, or choose another runDir", dir, path, info.Mode())
		}
	}
	return nil
}

// enterable refuses a folder that an Envoy's user cannot get to: Envoy would
// only say "permission denied" of a file below it.
func enterable(dir string, uid uint32) error {
	if int(uid) == os.Geteuid() {
		return nil
	}
	for path := filepath.Dir(dir); ; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			return fault.New(fault.Unavailable, "look at the folder of sessions: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if ok && st.Uid != uid && info.Mode().Perm()&0o001 == 0 {
			return fault.New(fault.Denied, "Envoy runs as uid %d, which cannot enter %s (%s) on the way to its session; chmod o+x that folder, or choose another runDir for the agent", uid, path, info.Mode())
		}
		if path == "/" || path == "." {
			return nil
		}
	}
}

// prepareDir makes the session's private folder for its Envoy's user.
func prepareDir(dir string, uid uint32) error {
	if err := enterable(dir, uid); err != nil {
		return err
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
