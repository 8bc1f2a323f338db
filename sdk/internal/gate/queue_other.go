//go:build !linux

package gate

import "net"

// refuseNewcomers is not possible here: who connects in the instant in which
// the socket is closed is reset.
func refuseNewcomers(net.Listener) bool { return false }

// queued cannot be known here.
func queued(net.Listener) bool { return false }
