package workload

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// tcpPeer is the other end of a loopback connection.
type tcpPeer struct {
	inode         uint64
	uid           uint32         // of the socket
	local, remote netip.AddrPort // as the peer sees them
}

// FromTCP holds the process at the other end of a loopback connection. The
// kernel does not vouch for it as for a Unix socket: the peer's socket is
// looked up, and it is served only if exactly one live process holds it, which
// Selectors and Recheck look at again. fault.Denied otherwise.
func (a *Attestor) FromTCP(conn *net.TCPConn) (*Caller, error) {
	peer := &tcpPeer{local: addrPort(conn.RemoteAddr()), remote: addrPort(conn.LocalAddr())}
	if !peer.local.Addr().IsLoopback() || !peer.remote.Addr().IsLoopback() {
		return nil, fault.New(fault.Denied, "a TCP caller must come over loopback, not from %s; use the Unix socket", peer.local)
	}
	inode, uid, err := peer.lookup()
	if err != nil {
		return nil, err
	}
	peer.inode, peer.uid = inode, uid
	pid, err := peer.holder()
	if err != nil {
		return nil, err
	}
	c, err := a.FromPID(int(pid))
	if err != nil {
		return nil, gone(pid)
	}
	c.tcp = peer
	c.sameUID = true
	if err := peer.recheck(pid); err != nil { // the pid may have been reused
		c.Close()
		return nil, err
	}
	if c.uid != uid {
		c.Close()
		return nil, fault.New(fault.Denied, "the socket %s belongs to uid %d and the process that holds it (pid %d) to uid %d", peer.local, uid, pid, c.uid)
	}
	return c, nil
}

// recheck: the same socket, held by this process and no other.
func (t *tcpPeer) recheck(pid int32) error {
	inode, _, err := t.lookup()
	if err != nil {
		return err
	}
	if inode != t.inode {
		return fault.New(fault.Denied, "the TCP caller at %s is another connection now", t.local)
	}
	now, err := t.holder()
	if err != nil {
		return err
	}
	if now != pid {
		return fault.New(fault.Denied, "the TCP connection from %s went from process %d to %d", t.local, pid, now)
	}
	return nil
}

// lookup finds the peer's socket in the agent's network namespace.
func (t *tcpPeer) lookup() (inode uint64, uid uint32, err error) {
	file := "/proc/self/net/tcp"
	if t.local.Addr().Is6() {
		file = "/proc/self/net/tcp6"
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, fmt.Errorf("attest a TCP caller: %w", err)
	}
	local, remote := procAddr(t.local), procAddr(t.remote)
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		// sl local remote st tx:rx tr:tm retrnsmt uid timeout inode …
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[1] != local || f[2] != remote {
			continue
		}
		u, errU := strconv.ParseUint(f[7], 10, 32)
		i, errI := strconv.ParseUint(f[9], 10, 64)
		if errU != nil || errI != nil || i == 0 {
			break // closed already
		}
		return i, uint32(u), nil
	}
	return 0, 0, fault.New(fault.Denied, "no live socket in the agent's network namespace is the TCP caller at %s", t.local)
}

// holder scans the open files of all processes for the socket.
func (t *tcpPeer) holder() (int32, error) {
	want := "socket:[" + strconv.FormatUint(t.inode, 10) + "]"
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("attest a TCP caller: %w", err)
	}
	found := int32(0)
	for _, p := range procs {
		pid, err := strconv.ParseInt(p.Name(), 10, 32)
		if err != nil {
			continue
		}
		holds, err := holdsFile(int32(pid), want)
		if err != nil && !harmless(int32(pid), t.uid) {
			return 0, fault.New(fault.Denied, "the agent may not see whether process %d holds the TCP caller's socket too; run the agent as root (CAP_SYS_PTRACE), or use the Unix socket: %w", pid, err)
		}
		if !holds {
			continue
		}
		if found != 0 {
			return 0, fault.New(fault.Denied, "the TCP connection from %s is held by the processes %d and %d; which of them calls cannot be told", t.local, found, pid)
		}
		found = int32(pid)
	}
	if found == 0 {
		return 0, fault.New(fault.Denied, "no live process holds the TCP connection from %s", t.local)
	}
	return found, nil
}

// harmless says of a process that may not be looked at that it is dead, that
// it is more privileged than an agent that runs as root, or that it is of
// another uid than the socket and so cannot pass for its holder.
func harmless(pid int32, uid uint32) bool {
	if os.Geteuid() == 0 {
		return true
	}
	raw, err := os.ReadFile(procPath(pid, "status"))
	if err != nil || bytes.Contains(raw, []byte("\nState:\tZ")) || bytes.Contains(raw, []byte("\nState:\tX")) {
		return true
	}
	st, err := parseStatus(raw)
	return err == nil && st.uid != uid
}

// holdsFile reports an error only when the process may not be looked at.
func holdsFile(pid int32, want string) (bool, error) {
	dir := procPath(pid, "fd")
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return false, err
		}
		return false, nil
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if errors.Is(err, os.ErrPermission) {
		return false, err
	}
	var buf [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(d.Fd()), name, buf[:])
		if err == nil && string(buf[:n]) == want {
			return true, nil
		}
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return false, err
		}
	}
	return false, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// procAddr writes an address as /proc/net/tcp does: 32-bit words in the
// machine's byte order, hexadecimal.
func procAddr(a netip.AddrPort) string {
	var b strings.Builder
	raw := a.Addr().AsSlice()
	for ; len(raw) >= 4; raw = raw[4:] {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(raw))
	}
	fmt.Fprintf(&b, ":%04X", a.Port())
	return b.String()
}
