package handshake

import (
	"io"
	"net"
	"time"
)

// lingerBytes is the most that Linger reads.
const lingerBytes = 64 << 10

// Linger ends a connection whose handshake failed so that the peer can read
// why: closing a socket with unread data resets it, and a reset overtakes the
// alert. It says that nothing more comes, reads what is still on its way for at
// most patience (zero is 250 ms) and 64 KiB, and closes.
func Linger(raw net.Conn, patience time.Duration) {
	defer raw.Close()
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if patience == 0 {
		patience = 250 * time.Millisecond
	}
	if raw.SetReadDeadline(time.Now().Add(patience)) != nil {
		return
	}
	// How it ends does not matter: it is closed next.
	_, _ = io.CopyN(io.Discard, raw, lingerBytes)
}
