package envoy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Envoy has no call that ends one connection, so the kernel does it: the
// socket is shut down under Envoy, which sees the end of its peer and closes
// the other half by itself. Nobody else's connection is touched.

const proc = "/proc"

// CloseConnections ends the connections of the Envoy pid whose sockets are
// pairs. It needs to be Envoy's parent with the same uid, or root. closed
// counts the sockets that were there and were ended; one that is already
// gone is no failure. failures says, one line each, what could not be ended
// and why.
func CloseConnections(ctx context.Context, pid int, pairs []Pair) (closed int, failures []string) {
	if len(pairs) == 0 {
		return 0, nil
	}
	want := make(map[Pair]bool, len(pairs))
	for _, p := range pairs {
		want[Pair{unmap(p.Local), unmap(p.Remote)}] = true
	}
	return closeWhere(ctx, pid, func(s socket) bool { return want[s.pair] })
}

// CloseUnknown ends every accepted connection of the Envoy pid on one of the
// local ports that is not in keep: connections whose peer nobody knows, such
// as those older than the agent, or still in their handshake.
func CloseUnknown(ctx context.Context, pid int, localPorts []uint16, keep []Pair) (closed int, failures []string) {
	if len(localPorts) == 0 {
		return 0, nil
	}
	known := make(map[Pair]bool, len(keep))
	for _, p := range keep {
		known[Pair{unmap(p.Local), unmap(p.Remote)}] = true
	}
	return closeWhere(ctx, pid, func(s socket) bool {
		return slices.Contains(localPorts, s.pair.Local.Port()) && !known[s.pair]
	})
}

func closeWhere(ctx context.Context, pid int, ends func(socket) bool) (closed int, failures []string) {
	targets := map[uint64]Pair{}
	want := map[uint64]bool{}
	err := sockets(proc, pid, func(s socket) {
		if s.state == stateListen || s.state == stateTimeWait || s.state == stateClose || s.inode == 0 || !ends(s) {
			return
		}
		targets[s.inode] = s.pair
		want[s.inode] = true
	})
	if err != nil {
		return 0, []string{err.Error()}
	}
	if len(targets) == 0 {
		return 0, nil
	}
	fds, err := descriptors(proc, pid, want)
	if err != nil {
		failures = append(failures, err.Error())
	}
	pidfd, pidErr := unix.PidfdOpen(pid, 0)
	if pidErr == nil {
		defer unix.Close(pidfd)
	}
	var destroyer *destroyer
	for inode, pair := range targets {
		if err := ctx.Err(); err != nil {
			return closed, append(failures, fmt.Sprintf("%s: not ended: %v", pair, err))
		}
		fd, ours := fds[inode]
		if !ours && err == nil {
			continue // another process's socket in this namespace, or just closed
		}
		first := pidErr
		if first == nil && ours {
			first = shutdown(pidfd, fd, inode)
			if first == nil {
				closed++
				continue
			}
			if errors.Is(first, errGone) {
				continue
			}
		}
		// As root the kernel ends a socket by its addresses.
		if destroyer == nil {
			destroyer = newDestroyer(pid)
			defer destroyer.close()
		}
		switch second := destroyer.destroy(pair); {
		case second == nil:
			closed++
		case errors.Is(second, unix.ENOENT): // gone meanwhile
		default:
			failures = append(failures, fmt.Sprintf("%s: %v; %v", pair, first, second))
		}
	}
	return closed, failures
}

var errGone = errors.New("the socket is gone")

// shutdown borrows the descriptor and ends both directions. The inode is
// compared once more: the number may have been reused.
func shutdown(pidfd, fd int, inode uint64) error {
	dup, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("borrow Envoy's descriptor %d (pidfd_getfd wants root, or Envoy's parent with its uid): %w", fd, err)
	}
	defer unix.Close(dup)
	var stat unix.Stat_t
	if err := unix.Fstat(dup, &stat); err != nil {
		return fmt.Errorf("look at Envoy's descriptor %d: %w", fd, err)
	}
	if stat.Ino != inode {
		return errGone
	}
	err = unix.Shutdown(dup, unix.SHUT_RDWR)
	if errors.Is(err, unix.ENOTCONN) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("shut down Envoy's descriptor %d: %w", fd, err)
	}
	return nil
}
