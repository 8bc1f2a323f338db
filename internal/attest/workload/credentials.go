package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// AuthInfo is what gRPC handlers find in their peer. A door that makes its
// own handshake (TLS over loopback) may put a Caller there too.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Caller *Caller
}

// AuthType is "legation-workload".
func (AuthInfo) AuthType() string { return "legation-workload" }

// FromContext returns the process that made the connection of a gRPC call.
// The Caller is closed with the connection.
func FromContext(ctx context.Context) (*Caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	switch info := p.AuthInfo.(type) {
	case AuthInfo:
		return info.Caller, info.Caller != nil
	case *AuthInfo:
		return info.Caller, info.Caller != nil
	}
	return nil, false
}

// NewCredentials makes a gRPC server on a Unix socket hold the process behind
// each connection. Nothing is encrypted: the kernel carries the bytes. Each
// user but root has a share of the connections; see ConnectionsPerUID.
func NewCredentials(a *Attestor) credentials.TransportCredentials {
	return NewLimitedCredentials(a, ConnectionsPerUID())
}

// NewLimitedCredentials is NewCredentials with so many connections for each
// user but root.
func NewLimitedCredentials(a *Attestor, perUID int) credentials.TransportCredentials {
	return transport{a, limit.NewSlots(perUID)}
}

// ConnectionsPerUID is how many connections one user may have to one socket:
// an eighth of the files this process may open, since each takes two (the
// connection and its pidfd), and at most 2048.
func ConnectionsPerUID() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 128
	}
	return int(min(max(files.Cur/8, 16), 2048))
}

type transport struct {
	a     *Attestor
	slots *limit.Slots // by uid
}

// take counts a connection of the caller's user; release gives it back.
func take(slots *limit.Slots, c *Caller) (release func(), err error) {
	if c.UID() == 0 {
		return func() {}, nil
	}
	release, ok := slots.Acquire(strconv.FormatUint(uint64(c.UID()), 10))
	if !ok {
		return nil, fault.New(fault.Limited, "uid %d has too many connections to this socket; close some first", c.UID())
	}
	return release, nil
}

func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := t.caller(conn)
	if err != nil {
		t.a.refused(err)
		conn.Close()
		return nil, nil, err
	}
	release, err := take(t.slots, c)
	if err != nil {
		t.a.refused(err)
		c.Close()
		conn.Close()
		return nil, nil, err
	}
	info := AuthInfo{Caller: c}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return &callerConn{conn, c, release}, info, nil
}

func (t transport) caller(conn net.Conn) (*Caller, error) {
	for {
		switch c := conn.(type) {
		case *net.UnixConn:
			return t.a.FromConn(c)
		case *net.TCPConn:
			return nil, fault.New(fault.Denied, "local callers are served over the Unix socket only")
		case interface{ NetConn() net.Conn }: // a limiting or counting wrapper
			conn = c.NetConn()
		default:
			return nil, fmt.Errorf("attest a caller over %T: not a Unix socket", conn)
		}
	}
}

func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload credentials are for servers")
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "legation-workload"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }

// callerConn closes the Caller with its connection.
type callerConn struct {
	net.Conn
	caller  *Caller
	release func()
}

func (c *callerConn) Close() error {
	err := c.Conn.Close()
	c.caller.Close()
	c.release()
	return err
}
