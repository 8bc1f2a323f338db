package gate

import (
	"math"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// nowhere is the index of a network interface that there is not.
const nowhere = math.MaxInt32

// refuseNewcomers makes the kernel answer new connections as if the port were
// closed, so that the queue can be emptied: the socket is bound to an interface
// that no packet comes in by. Connections that are in, or half way in, are not
// bound to it. It needs no rights, and works for multipath TCP, which is what Go
// listens with, where a packet filter does not. Other sockets on the same port
// (SO_REUSEPORT) get the newcomers.
func refuseNewcomers(l net.Listener) bool {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	bound := false
	err = raw.Control(func(fd uintptr) {
		bound = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, nowhere) == nil
	})
	return err == nil && bound
}

// queued reports whether somebody waits to be accepted.
func queued(l net.Listener) bool {
	s, ok := l.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	waits := false
	err = raw.Control(func(fd uintptr) {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(polled, 0)
		waits = err == nil && n == 1 && polled[0].Revents&unix.POLLIN != 0
	})
	return err == nil && waits
}
