package handshake

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
)

// A tap is a connection that keeps the last bytes that were read during the
// handshake.
type tap struct {
	net.Conn
	done bool // written before the handshake's caller goes on
	last [alertRecord]byte
}

// alertRecord is the length of an alert without encryption: type, version,
// length, level, description (RFC 8446 5.1, 6).
const alertRecord = 7

// NetConn returns the connection below, as tls.Conn.NetConn does.
func (t *tap) NetConn() net.Conn { return t.Conn }

// SyscallConn implements syscall.Conn for those that set socket options.
func (t *tap) SyscallConn() (syscall.RawConn, error) {
	if s, ok := t.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if !t.done && n > 0 {
		if n >= alertRecord {
			copy(t.last[:], p[n-alertRecord:n])
		} else {
			copy(t.last[:], t.last[n:])
			copy(t.last[alertRecord-n:], p[:n])
		}
	}
	return n, err
}

// plainAlert finds an alert that was not encrypted where it ought to have been.
// Nobody vouches for it, as for nothing that happens before a peer is verified;
// it explains a handshake that failed already.
func (t *tap) plainAlert(err error) (tls.AlertError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "local error" || t.last[0] != 21 || t.last[1] != 3 || t.last[3] != 0 || t.last[4] != 2 || t.last[5] != 2 {
		return 0, false
	}
	return tls.AlertError(t.last[6]), true
}
