package workload

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/legation-io/legation/internal/fault"
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
// each connection. Nothing is encrypted: the kernel carries the bytes.
func NewCredentials(a *Attestor) credentials.TransportCredentials {
	return transport{a}
}

type transport struct{ a *Attestor }

func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := t.caller(conn)
	if err != nil {
		t.a.refused(err)
		conn.Close()
		return nil, nil, err
	}
	info := AuthInfo{Caller: c}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return &callerConn{conn, c}, info, nil
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
	caller *Caller
}

func (c *callerConn) Close() error {
	err := c.Conn.Close()
	c.caller.Close()
	return err
}
