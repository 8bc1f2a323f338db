package workload

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
)

// tlsHandshake bounds a caller that connects and says nothing.
const tlsHandshake = 10 * time.Second

// NewTLSCredentials are server credentials for loopback TCP: the process at
// the other end is held before the TLS handshake, and Selectors looks again
// that it alone holds the socket. Handlers find it with FromContext. The client proves nothing by TLS;
// it is the client that verifies us.
func NewTLSCredentials(a *Attestor, config *tls.Config) credentials.TransportCredentials {
	return tlsTransport{attestor: a, config: config, slots: limit.NewSlots(ConnectionsPerUID())}
}

type tlsTransport struct {
	attestor *Attestor
	config   *tls.Config
	slots    *limit.Slots // by uid
}

func (t tlsTransport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	kernels := raw
	if w, ok := raw.(interface{ NetConn() net.Conn }); ok { // a limiting or counting wrapper
		kernels = w.NetConn()
	}
	tcp, ok := kernels.(*net.TCPConn)
	if !ok {
		raw.Close()
		return nil, nil, fault.New(fault.Denied, "a %T is not a TCP connection", raw)
	}
	caller, err := t.attestor.FromTCP(tcp)
	if err != nil {
		t.attestor.refused(err)
		raw.Close()
		return nil, nil, err
	}
	release, err := take(t.slots, caller)
	if err != nil {
		caller.Close()
		raw.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tlsHandshake)
	defer cancel()
	conn := tls.Server(raw, t.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		caller.Close()
		raw.Close()
		release()
		return nil, nil, err
	}
	info := AuthInfo{Caller: caller}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return &callerConn{conn, caller, release}, info, nil
}

func (tlsTransport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fault.New(fault.Internal, "these credentials are a server's")
}

func (tlsTransport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t tlsTransport) Clone() credentials.TransportCredentials { return t }
func (tlsTransport) OverrideServerName(string) error           { return nil }
