package workload

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// Caller is one local process, held by pidfd: while it is alive its pid
// cannot be another's. Its methods may be called concurrently.
//
// The identity is that of the process that connected. What is not covered: a
// process that connects, hands a copy of the socket to a second one and then
// executes another program is attested as that program, if its uid and gid did
// not change. Only processes of the same uid can do so, and they could also trace
// that program, unless it is one that they may execute and not read.
type Caller struct {
	a   *Attestor
	pid int32
	// sameUID refuses a process that changed its uid or gid since it connected.
	sameUID bool
	tcp     *tcpPeer // nil unless it called over loopback

	mu       sync.RWMutex // guards what follows
	uid, gid uint32
	fd       int     // the pidfd; -1 after Close
	exe      *fileID // when the selectors were read
	watch    bool
	closed   bool

	endOnce sync.Once
	done    chan struct{}
}

// FromConn holds the process that connected to a Unix socket. fault.Denied
// when it is gone already or cannot be seen from here.
func (a *Attestor) FromConn(conn *net.UnixConn) (*Caller, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("attest the caller: %w", err)
	}
	var cred *unix.Ucred
	var credErr, fdErr error
	pidfd := -1
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr != nil {
			return
		}
		pidfd, fdErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("attest the caller: %w", err)
	case credErr != nil:
		return nil, fmt.Errorf("attest the caller: credentials of the peer: %w", credErr)
	}
	if cred.Pid <= 0 {
		if fdErr == nil {
			unix.Close(pidfd)
		}
		return nil, fault.New(fault.Denied, "the caller's process cannot be seen from the agent: it lives in a pid namespace that is not below the agent's; run the agent in the host's pid namespace")
	}
	switch {
	case fdErr == nil:
		unix.CloseOnExec(pidfd)
	case errors.Is(fdErr, unix.ENOPROTOOPT): // before Linux 6.5
		if pidfd, err = openPID(int(cred.Pid), time.Now()); err != nil {
			return nil, err
		}
	default: // ESRCH, EINVAL, ENODATA: nobody is there any more
		return nil, gone(cred.Pid)
	}
	return a.hold(pidfd, cred.Pid, cred.Uid, cred.Gid)
}

// FromPID holds the process that has this pid now. The caller of FromPID
// must know that it is the one that is meant, e.g. its own child.
func (a *Attestor) FromPID(pid int) (*Caller, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil, fault.New(fault.NotFound, "no process has the pid %d", pid)
		}
		return nil, fmt.Errorf("attest process %d: %w", pid, err)
	}
	status, err := readStatus(int32(pid))
	if err != nil {
		unix.Close(fd)
		return nil, fault.New(fault.NotFound, "no process has the pid %d: %w", pid, err)
	}
	c, err := a.hold(fd, int32(pid), status.uid, status.gid)
	if err == nil {
		c.sameUID = false
	}
	return c, err
}

func (a *Attestor) hold(fd int, pid int32, uid, gid uint32) (*Caller, error) {
	c := &Caller{a: a, pid: pid, uid: uid, gid: gid, sameUID: true, fd: fd, done: make(chan struct{})}
	if !c.Alive() {
		c.Close()
		return nil, gone(pid)
	}
	return c, nil
}

// openPID is for kernels without SO_PEERPIDFD. The pid that the socket
// remembers may belong to another process by now; one that started after the
// connection was accepted, or while its pidfd was opened, is refused. A pid
// that was reused between connect and accept is not noticed on such kernels.
func openPID(pid int, accepted time.Time) (int, error) {
	before, err := startTime(pid)
	if err != nil {
		return -1, gone(int32(pid))
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, gone(int32(pid))
	}
	after, err := startTime(pid)
	if err != nil || after != before || !alive(fd) || startedAfter(after, accepted) {
		unix.Close(fd)
		return -1, gone(int32(pid))
	}
	return fd, nil
}

func gone(pid int32) error {
	return fault.New(fault.Denied, "the calling process (pid %d) ended before it could be attested", pid)
}

// PID as the agent sees it.
func (c *Caller) PID() int32 { return c.pid }

// UID is the effective uid, for a socket that at the time of connecting.
func (c *Caller) UID() uint32 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.uid
}

// GID is the effective gid, for a socket that at the time of connecting.
func (c *Caller) GID() uint32 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.gid
}

// Alive reports whether the process still runs (a zombie does not).
func (c *Caller) Alive() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.fd >= 0 && alive(c.fd)
}

// alive polls the pidfd: readable means that the process ended (pidfd_open(2)).
func alive(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 0
	}
}

// Done is closed when the process ends, or the Caller is closed.
func (c *Caller) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watch || c.closed {
		return c.done
	}
	c.watch = true
	c.a.watch(c.fd, c)
	return c.done
}

func (c *Caller) end() { c.endOnce.Do(func() { close(c.done) }) }

// Close lets go of the process. It may be called twice.
func (c *Caller) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	if c.watch {
		c.a.unwatch(c.fd)
	}
	unix.Close(c.fd)
	c.fd = -1
	c.end()
}

// Recheck reports whether this is still the process whose selectors were
// read, running the same executable under the same uid. fault.Denied when it
// ended or runs something else: attest again or end the connection.
func (c *Caller) Recheck() error {
	c.mu.RLock()
	was, uid, gid := c.exe, c.uid, c.gid
	c.mu.RUnlock()
	if was == nil {
		return fault.New(fault.Denied, "the process (pid %d) was not attested yet", c.pid)
	}
	now, err := exeID(c.pid)
	if err != nil {
		return c.vanished(err)
	}
	status, err := readStatus(c.pid)
	if err != nil {
		return c.vanished(err)
	}
	if c.tcp != nil {
		if err := c.tcp.recheck(c.pid); err != nil {
			return err
		}
	}
	switch {
	case !c.Alive():
		return gone(c.pid)
	case now != *was:
		return fault.New(fault.Denied, "the process (pid %d) executed another program since it was attested; connect again", c.pid)
	case status.uid != uid:
		return fault.New(fault.Denied, "the process (pid %d) changed its uid from %d to %d since it connected; connect again", c.pid, uid, status.uid)
	case status.gid != gid:
		return fault.New(fault.Denied, "the process (pid %d) changed its gid from %d to %d since it connected; connect again", c.pid, gid, status.gid)
	}
	return nil
}

// vanished tells a process that ended from one that cannot be read.
func (c *Caller) vanished(err error) error {
	if !c.Alive() {
		return gone(c.pid)
	}
	return fmt.Errorf("attest process %d: %w", c.pid, err)
}

// startTime is the 22nd field of /proc/<pid>/stat: clock ticks since boot.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(raw)
}

// ticksPerSecond is USER_HZ, 100 on every architecture Go supports.
const ticksPerSecond = 100

// startedAfter compares a start time with a wall time by the time since boot.
func startedAfter(ticks uint64, t time.Time) bool {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return true
	}
	accepted := time.Duration(now.Nano()) - time.Since(t)
	return time.Duration(ticks)*(time.Second/ticksPerSecond) > accepted
}
