// Package grpccreds answers "how does a gRPC service speak mutual TLS that
// cannot be left unauthenticated": transport credentials on the same core as
// sdk/mtls, with its configurations; handlers know their caller by
// identity.PeerFromContext. What sdk/mtls promises (who is verified how, no resumption,
// connections that end when their peer is believed no longer) holds here.
//
// A server:
//
//	creds, err := grpccreds.NewServer(mtls.ServerConfig{
//		Source:    source,
//		Authorize: mtls.AuthorizeMemberOf(domain),
//	})
//	...
//	server := grpc.NewServer(grpc.Creds(creds)) // identity.PeerFromContext(ctx) in handlers
//
// and a client:
//
//	creds, err := grpccreds.NewClient(mtls.ClientConfig{
//		Source:    source,
//		Authorize: mtls.AuthorizeID(server),
//	})
//	...
//	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
//
// Both sides insist on the application protocol "h2" (RFC 9113 3.2); a peer
// that agrees on none is refused. Certificates and trust are taken from the
// Source at each handshake, so that a rotation needs nothing. A gRPC server
// that wants its clients to reconnect before their certificates expire sets
// keepalive.ServerParameters.MaxConnectionAge.
package grpccreds

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/grpcpeer"
	"github.com/legation-io/legation/sdk/mtls"
)

// AuthInfo is what gRPC knows of a connection of this package.
type AuthInfo struct {
	credentials.CommonAuthInfo
	// Peer is verified and authorised. Its ID is zero for a server that was
	// verified by its public name (mtls.AuthorizeServerName).
	Peer  identity.Peer
	State tls.ConnectionState
}

// AuthType implements credentials.AuthInfo.
func (*AuthInfo) AuthType() string { return "tls" }

// GetSecurityValue tells channelz.
func (a *AuthInfo) GetSecurityValue() credentials.ChannelzSecurityValue {
	v := &credentials.TLSChannelzSecurityValue{StandardName: tls.CipherSuiteName(a.State.CipherSuite)}
	if a.Peer.Certificate != nil {
		v.RemoteCertificate = a.Peer.Certificate.Raw
	}
	return v
}

// Server is the transport credentials of a server.
type Server struct{ *mtls.Server }

// NewServer returns credentials for grpc.Creds. NextProtos of the
// configuration is not used: it is "h2". The error says what the configuration
// lacks.
func NewServer(config mtls.ServerConfig) (*Server, error) {
	config.NextProtos, config.RequireALPN = []string{"h2"}, true
	s, err := mtls.NewServer(config)
	if err != nil {
		return nil, err
	}
	return &Server{s}, nil
}

// ServerOptions are the credentials of NewServer and both interceptors, for
// services that are registered with other servers too.
func ServerOptions(config mtls.ServerConfig) ([]grpc.ServerOption, error) {
	s, err := NewServer(config)
	if err != nil {
		return nil, err
	}
	return []grpc.ServerOption{
		grpc.Creds(s), grpc.ChainUnaryInterceptor(UnaryServerInterceptor), grpc.ChainStreamInterceptor(StreamServerInterceptor),
	}, nil
}

// ServerHandshake implements credentials.TransportCredentials. It ends after
// the configuration's HandshakeTimeout.
func (s *Server) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := s.Handshake(context.Background(), raw)
	if err != nil {
		return nil, nil, err
	}
	return wrap(c), authInfo(c), nil
}

// ClientHandshake implements credentials.TransportCredentials, and refuses.
func (s *Server) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	raw.Close()
	return nil, nil, errors.New("these are a server's credentials; a client needs grpccreds.NewClient")
}

// Info implements credentials.TransportCredentials.
func (s *Server) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. Nothing of them changes.
func (s *Server) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials; it has no
// meaning for a server.
func (s *Server) OverrideServerName(string) error { return nil }

// Client is the transport credentials of a client.
type Client struct{ *mtls.Dialer }

// NewClient returns credentials for grpc.WithTransportCredentials. NextProtos
// of the configuration is not used: it is "h2"; nor is Dial: gRPC dials
// (grpc.WithContextDialer). The host that Authorize sees is that of the
// target's authority, or ServerName. The error says what the configuration
// lacks.
func NewClient(config mtls.ClientConfig) (*Client, error) {
	config.NextProtos, config.RequireALPN = []string{"h2"}, true
	d, err := mtls.NewDialer(config)
	if err != nil {
		return nil, err
	}
	return &Client{d}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *Client) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, err := c.Handshake(ctx, raw, authority)
	if err != nil {
		return nil, nil, err
	}
	return wrap(t), authInfo(t), nil
}

// ServerHandshake implements credentials.TransportCredentials, and refuses.
func (c *Client) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	raw.Close()
	return nil, nil, errors.New("these are a client's credentials; a server needs grpccreds.NewServer")
}

// Info implements credentials.TransportCredentials.
func (c *Client) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. Nothing of them changes.
func (c *Client) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials, and refuses:
// set ServerName in the configuration, or grpc.WithAuthority.
func (c *Client) OverrideServerName(string) error {
	return errors.New("the server name of these credentials is mtls.ClientConfig's, or grpc.WithAuthority's")
}

func authInfo(c *tls.Conn) *AuthInfo {
	a := &AuthInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, State: c.ConnectionState()}
	a.Peer, _ = mtls.PeerOf(c)
	return a
}

// conn lets gRPC set socket options, and explains a refusal that comes after
// the client's handshake.
type conn struct {
	*tls.Conn
}

func wrap(c *tls.Conn) net.Conn { return &conn{c} }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		err = mtls.Explain(context.Background(), c.Conn, err)
	}
	return n, err
}

// SyscallConn implements syscall.Conn.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.NetConn().(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func init() {
	grpcpeer.Register(func(ctx context.Context) any {
		if p := peerOf(ctx); p != nil {
			return p
		}
		return nil
	})
}

// peerOf finds the verified peer of the connection that gRPC has put into the
// context of a call.
func peerOf(ctx context.Context) *identity.Peer {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	a, ok := p.AuthInfo.(*AuthInfo)
	if !ok || a.Peer.ID.IsZero() {
		return nil
	}
	return &a.Peer
}

// PeerFromContext returns the verified caller in a server's handler, and false
// on connections of other credentials; what identity.PeerFromContext returns
// may also have been set by the program. A client finds its server with
// grpc.Peer and AuthInfo.
func PeerFromContext(ctx context.Context) (identity.Peer, bool) {
	p := peerOf(ctx)
	if p == nil {
		return identity.Peer{}, false
	}
	return *p, true
}

var errNoPeer = status.Error(codes.Unauthenticated, "no verified peer: this service is served with credentials of sdk/grpccreds only")

// UnaryServerInterceptor refuses a call without a verified peer
// (Unauthenticated), e.g. of a server with other credentials that the service
// is registered with too. Servers whose only credentials are these need none.
func UnaryServerInterceptor(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if peerOf(ctx) == nil {
		return nil, errNoPeer
	}
	return handler(ctx, request)
}

// StreamServerInterceptor is UnaryServerInterceptor for streams.
func StreamServerInterceptor(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if peerOf(stream.Context()) == nil {
		return errNoPeer
	}
	return handler(server, stream)
}
