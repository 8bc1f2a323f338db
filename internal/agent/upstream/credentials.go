package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc/credentials"
)

// refusalTimeout bounds the wait for the server's first byte, or its alert.
const refusalTimeout = 10 * time.Second

// listening is TLS that hears a refusal. In TLS 1.3 a client has finished its
// handshake before the server has judged its certificate; what the client
// writes next can fail before the alert with the reason is read. gRPC servers
// speak first (RFC 9113 3.4), so waiting for one byte tells.
type listening struct {
	credentials.TransportCredentials
	refused func(error) error // names a refusal of our certificate
}

func (c listening) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(refusalTimeout); !ok || deadline.After(limit) {
		deadline = limit
	}
	first := make([]byte, 1)
	_ = conn.SetReadDeadline(deadline)
	n, err := conn.Read(first)
	_ = conn.SetReadDeadline(time.Time{})
	if n == 0 || err != nil {
		conn.Close()
		var remote *net.OpError
		if errors.As(err, &remote) && remote.Op == "remote error" {
			err = c.refused(err)
		}
		return nil, nil, fmt.Errorf("the control plane ended the connection: %w", err)
	}
	return &begun{Conn: conn, first: first}, info, nil
}

func (c listening) Clone() credentials.TransportCredentials {
	return listening{c.TransportCredentials.Clone(), c.refused}
}

// begun is a connection whose first byte was read already.
type begun struct {
	net.Conn
	first []byte
}

func (c *begun) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// refusal is a replica's word that it does not accept our certificate.
type refusal struct {
	serial string
	err    error
}

// transport is how a replica is spoken to under an identity, nil before the
// first. A refusal of that identity is kept for the next connection.
func (l *Link) transport(id *Identity) credentials.TransportCredentials {
	return listening{credentials.NewTLS(l.tlsConfig(id)), func(err error) error {
		if id == nil {
			return err
		}
		err = fault.New(fault.Denied, "it refuses this node's certificate %s (%w): the node was banned, or the certificate was revoked; see: legation node list, legation cert show %s; a new join token admits it again", id.Serial, err, id.Serial)
		l.refusal.Store(&refusal{id.Serial, err})
		return err
	}}
}
