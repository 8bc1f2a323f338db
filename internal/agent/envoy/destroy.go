package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// sockDestroy is SOCK_DESTROY of linux/sock_diag.h: end the TCP socket with
// these addresses (CONFIG_INET_DIAG_DESTROY, CAP_NET_ADMIN).
const sockDestroy = 21

// destroyer is a sock_diag socket in the network namespace of a process.
type destroyer struct {
	fd  int
	err error
	seq uint32
}

func newDestroyer(pid int) *destroyer {
	if same, err := sameNetNS(pid); err != nil {
		return &destroyer{fd: -1, err: err}
	} else if same {
		fd, err := diagSocket()
		return &destroyer{fd: fd, err: err}
	}
	type result struct {
		fd  int
		err error
	}
	ch := make(chan result, 1)
	go func() {
		// The thread changes namespace and is thrown away: it stays locked.
		runtime.LockOSThread()
		if err := enter(fmt.Sprintf("%s/%d/ns/net", proc, pid)); err != nil {
			ch <- result{-1, err}
			return
		}
		fd, err := diagSocket()
		ch <- result{fd, err}
	}()
	r := <-ch
	return &destroyer{fd: r.fd, err: r.err}
}

func sameNetNS(pid int) (bool, error) {
	ours, err := os.Stat(proc + "/self/ns/net")
	if err != nil {
		return false, fmt.Errorf("look at our network namespace: %w", err)
	}
	theirs, err := os.Stat(fmt.Sprintf("%s/%d/ns/net", proc, pid))
	if err != nil {
		return false, fmt.Errorf("look at Envoy's network namespace: %w", err)
	}
	return os.SameFile(ours, theirs), nil
}

func diagSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return -1, fmt.Errorf("open a sock_diag socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set a sock_diag socket's timeout: %w", err)
	}
	return fd, nil
}

func (d *destroyer) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

// destroy ends the connection with these addresses. It returns unix.ENOENT
// when there is none, and the socket's inode when it was found.
//
// The kernel looks a socket up as if a packet had come: when the connection
// is gone it finds the *listener*, and SOCK_DESTROY without a cookie would
// end that (tried). So the socket is asked for first, seen to be the
// connection meant, and ended by its cookie.
func (d *destroyer) destroy(p Pair) (inode uint64, err error) {
	if d.err != nil {
		return 0, d.err
	}
	if p.Local.Addr().Is4() != p.Remote.Addr().Is4() {
		return 0, fmt.Errorf("%s mixes address families", p)
	}
	answer, err := d.ask(diagRequest(unix.SOCK_DIAG_BY_FAMILY, p, noCookie))
	if err != nil {
		return 0, fmt.Errorf("look up %s by sock_diag: %w", p, err)
	}
	// After nlmsghdr comes inet_diag_msg: family, state, timer, retrans,
	// inet_diag_sockid (ports, addresses, interface, cookie), expires, rqueue,
	// wqueue, uid, inode.
	const cookieAt, inodeAt = 16 + 4 + 40, 16 + 4 + 48 + 16
	if len(answer) < inodeAt+4 {
		return 0, fmt.Errorf("look up %s by sock_diag: short answer of %d bytes", p, len(answer))
	}
	if answer[17] == stateListen || binary.BigEndian.Uint16(answer[22:]) != p.Remote.Port() {
		return 0, unix.ENOENT
	}
	inode = uint64(binary.NativeEndian.Uint32(answer[inodeAt:]))
	_, err = d.ask(diagRequest(sockDestroy, p, binary.NativeEndian.Uint64(answer[cookieAt:])))
	if errors.Is(err, unix.ESTALE) {
		return inode, unix.ENOENT
	}
	if err != nil && inode == 0 {
		// No process holds it any more: Envoy has closed it, and the kernel
		// is saying goodbye.
		return 0, unix.ENOENT
	}
	if err != nil {
		return inode, fmt.Errorf("end %s by SOCK_DESTROY (wants CAP_NET_ADMIN): %w", p, err)
	}
	return inode, nil
}

// ask sends a request and returns the answer, nil when it is only an
// acknowledgement.
func (d *destroyer) ask(request []byte) ([]byte, error) {
	d.seq++
	binary.NativeEndian.PutUint32(request[8:], d.seq)
	if err := unix.Sendto(d.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8192)
	for range 16 { // answers to earlier requests that timed out come first
		n, _, err := unix.Recvfrom(d.fd, buf, 0)
		if err != nil {
			return nil, err
		}
		if n < 20 || binary.NativeEndian.Uint32(buf[8:]) != d.seq {
			continue
		}
		if binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return buf[:n], nil
		}
		if errno := -int32(binary.NativeEndian.Uint32(buf[16:])); errno != 0 {
			return nil, unix.Errno(errno)
		}
		return nil, nil
	}
	return nil, errors.New("the kernel does not answer")
}

const noCookie = ^uint64(0) // INET_DIAG_NOCOOKIE

// diagRequest is nlmsghdr followed by inet_diag_req_v2 (linux/inet_diag.h):
// addresses and ports in network order. A socket that was accepted on [::]
// from IPv4 is found as IPv4.
func diagRequest(kind uint16, p Pair, cookie uint64) []byte {
	const size = 16 + 56
	b := make([]byte, size)
	flags := uint16(unix.NLM_F_REQUEST)
	if kind == sockDestroy {
		flags |= unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint32(b[0:], size)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	b[16] = unix.AF_INET6
	if p.Local.Addr().Is4() {
		b[16] = unix.AF_INET
	}
	b[17] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[20:], 0xffffffff) // any state
	binary.BigEndian.PutUint16(b[24:], p.Local.Port())
	binary.BigEndian.PutUint16(b[26:], p.Remote.Port())
	putAddr(b[28:44], p.Local.Addr())
	putAddr(b[44:60], p.Remote.Addr())
	binary.NativeEndian.PutUint64(b[64:], cookie)
	return b
}

func putAddr(b []byte, a netip.Addr) { copy(b, a.AsSlice()) }
