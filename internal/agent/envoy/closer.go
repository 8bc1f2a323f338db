package envoy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Envoy has no call that ends one connection, so the kernel does it, under
// Envoy, which then closes the other half by itself. Nobody else's
// connection is touched. There are two ways, and each has its costs:
//
//   - SOCK_DESTROY over sock_diag, by addresses: 50 µs however many
//     connections there are; the peer sees a reset. It wants CAP_NET_ADMIN.
//   - pidfd_getfd and shutdown: a look at every descriptor of Envoy; the
//     peer sees an end of file. It wants to be Envoy's parent with its uid.
//
// /proc/net/tcp is read only where neither a lookup by sock_diag nor one of
// Envoy's descriptors is possible: it walks the kernel's whole table, 5 ms
// on a machine with 262,144 buckets, all empty.

const proc = "/proc"

// CloseConnections ends the connections of the Envoy pid whose sockets are
// pairs. It needs to be root, or Envoy's parent with the same uid and in the
// same network namespace. closed counts the sockets that were there and were
// ended; one that is already gone is no failure. failures says, one line
// each, what could not be ended and why.
func CloseConnections(ctx context.Context, pid int, pairs []Pair) (closed int, failures []string) {
	if len(pairs) == 0 {
		return 0, nil
	}
	d := newDestroyer(pid)
	defer d.close()
	left := map[uint64]Pair{} // by inode: what SOCK_DESTROY may not end
	why := map[uint64]error{}
	for _, p := range pairs {
		if err := ctx.Err(); err != nil {
			return closed, append(failures, fmt.Sprintf("%s: not ended: %v", p, err))
		}
		p = Pair{unmap(p.Local), unmap(p.Remote)}
		inode, err := d.destroy(p)
		switch {
		case err == nil:
			closed++
		case errors.Is(err, unix.ENOENT):
		case inode != 0:
			left[inode], why[inode] = p, err
		case d.err != nil: // no lookup in that namespace; all at once below
			return closeByTable(pid, pairs, d.err)
		default:
			failures = append(failures, err.Error())
		}
	}
	n, more := closeByInode(pid, left, why)
	return closed + n, append(failures, more...)
}

// Accepted lists the connections of the Envoy pid on the local ports, those
// in their handshake too, by looking at its descriptors. Those that nobody
// can name a moment later are what a revocation ends with Unnamed and
// CloseConnections.
func Accepted(pid int, localPorts []uint16) ([]Pair, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("hold Envoy (pid %d): %w", pid, err)
	}
	defer unix.Close(pidfd)
	var pairs []Pair
	var failed error
	err = descriptors(proc, pid, func(fd int, inode uint64) bool {
		_, err := endIf(pidfd, fd, inode, func(p Pair) bool {
			if slices.Contains(localPorts, p.Local.Port()) {
				pairs = append(pairs, p)
			}
			return false
		})
		if err != nil && !errors.Is(err, errGone) {
			failed = err
		}
		return failed == nil
	})
	return pairs, errors.Join(err, failed)
}

// Unnamed is what of accepted is not in keep: connections whose peer nobody
// knows, such as those older than the agent.
func Unnamed(accepted, keep []Pair) []Pair {
	known := make(map[Pair]bool, len(keep))
	for _, p := range keep {
		known[Pair{unmap(p.Local), unmap(p.Remote)}] = true
	}
	return slices.DeleteFunc(slices.Clone(accepted), func(p Pair) bool { return known[p] })
}

// closeByTable finds the sockets in /proc/<pid>/net/tcp.
func closeByTable(pid int, pairs []Pair, cause error) (int, []string) {
	want := make(map[Pair]bool, len(pairs))
	for _, p := range pairs {
		want[Pair{unmap(p.Local), unmap(p.Remote)}] = true
	}
	left := map[uint64]Pair{}
	why := map[uint64]error{}
	err := sockets(proc, pid, func(s socket) {
		if want[s.pair] && s.inode != 0 && s.state != stateListen && s.state != stateTimeWait {
			left[s.inode], why[s.inode] = s.pair, cause
		}
	})
	if err != nil {
		return 0, []string{cause.Error() + "; " + err.Error()}
	}
	return closeByInode(pid, left, why)
}

// closeByInode shuts sockets down through Envoy's descriptors.
func closeByInode(pid int, left map[uint64]Pair, why map[uint64]error) (closed int, failures []string) {
	if len(left) == 0 {
		return 0, nil
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, []string{fmt.Sprintf("hold Envoy (pid %d): %v", pid, err)}
	}
	defer unix.Close(pidfd)
	err = descriptors(proc, pid, func(fd int, inode uint64) bool {
		pair, ok := left[inode]
		if !ok {
			return true
		}
		delete(left, inode)
		switch ended, err := endIf(pidfd, fd, inode, func(Pair) bool { return true }); {
		case ended:
			closed++
		case err != nil && !errors.Is(err, errGone):
			failures = append(failures, fmt.Sprintf("%s: %v; %v", pair, why[inode], err))
		}
		return len(left) > 0
	})
	if err != nil {
		failures = append(failures, err.Error())
	}
	// What is left is no descriptor of Envoy's: gone, or another's.
	return closed, failures
}

var errGone = errors.New("the socket is gone")

// endIf borrows a descriptor of Envoy's, sees that it is still the socket
// with that inode (the number may have been reused), and ends both
// directions when it is a TCP connection that ends says should.
func endIf(pidfd, fd int, inode uint64, ends func(Pair) bool) (bool, error) {
	dup, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return false, errGone
	}
	if err != nil {
		return false, fmt.Errorf("borrow Envoy's descriptor %d (pidfd_getfd wants root, or Envoy's parent with its uid): %w", fd, err)
	}
	defer unix.Close(dup)
	var stat unix.Stat_t
	if err := unix.Fstat(dup, &stat); err != nil {
		return false, fmt.Errorf("look at Envoy's descriptor %d: %w", fd, err)
	}
	if stat.Ino != inode {
		return false, errGone
	}
	pair, ok := pairOf(dup)
	if !ok || !ends(pair) {
		return false, nil
	}
	err = unix.Shutdown(dup, unix.SHUT_RDWR)
	if errors.Is(err, unix.ENOTCONN) {
		return false, errGone
	}
	if err != nil {
		return false, fmt.Errorf("shut down %s: %w", pair, err)
	}
	return true, nil
}

// pairOf is false for what is no TCP connection.
func pairOf(fd int) (Pair, bool) {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || kind != unix.IPPROTO_TCP {
		return Pair{}, false
	}
	local, errL := unix.Getsockname(fd)
	remote, errR := unix.Getpeername(fd) // fails for a listener
	if errL != nil || errR != nil {
		return Pair{}, false
	}
	p := Pair{fromSockaddr(local), fromSockaddr(remote)}
	return p, p.Local.IsValid() && p.Remote.IsValid()
}

func fromSockaddr(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return unmap(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)))
	}
	return netip.AddrPort{}
}
