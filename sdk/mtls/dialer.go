package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/legation-io/legation/sdk/handshake"
)

// dialTimeout bounds the connection below TLS.
const dialTimeout = 10 * time.Second

// Dialer dials servers and verifies who they are.
type Dialer struct {
	core *core
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewDialer returns a Dialer. The error says what the configuration lacks.
func NewDialer(config ClientConfig) (*Dialer, error) {
	k, err := config.core()
	if err != nil {
		return nil, err
	}
	d := &Dialer{core: k, dial: config.Dial}
	if d.dial == nil {
		d.dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return d, nil
}

// DialContext connects to the server at address and returns the connection,
// always a *tls.Conn, whose peer is verified and authorised. The error is a
// *handshake.Error when the handshake failed, an *identity.NotReady when there
// is no identity yet.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d.connect(ctx, network, address, false)
}

// connect returns a nil interface with an error, not a nil *tls.Conn.
func (d *Dialer) connect(ctx context.Context, network, address string, http bool) (net.Conn, error) {
	host := d.host(address)
	if err := d.core.ready(host); err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	raw, err := d.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c, err := d.core.handshake(ctx, raw, host, http)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ready says what would fail without asking anybody.
func (k *core) ready(host string) error {
	if k.live.isClosed() {
		return errDialerClosed
	}
	if k.authorize.host != nil {
		if err := k.authorize.host(host); err != nil {
			return &handshake.Refusal{Cause: handshake.Misconfigured, Err: err}
		}
	}
	b, err := k.current()
	if err == nil && b.snapshot.Certificate == nil && k.authorize.roots == nil {
		err = errNoCertificate
	}
	if err != nil {
		return notReady(err)
	}
	return nil
}

// host is whom an address names, in lower case.
func (d *Dialer) host(address string) string {
	host := d.core.serverName
	if host == "" {
		var err error
		if host, _, err = net.SplitHostPort(address); err != nil {
			host = strings.Trim(address, "[]")
		}
	}
	return strings.ToLower(host)
}

// Handshake performs the client's side of a handshake on raw, with the server
// that authority (host or host:port) names. Raw belongs to it from then on,
// and is closed when it fails; errors are DialContext's.
func (d *Dialer) Handshake(ctx context.Context, raw net.Conn, authority string) (*tls.Conn, error) {
	host := d.host(authority)
	if err := d.core.ready(host); err != nil {
		raw.Close()
		return nil, handshake.Begin(handshake.Client, raw, d.core.hooks).Fail(ctx, err)
	}
	return d.core.handshake(ctx, raw, host, false)
}

// Transport returns a new transport for http.Client with the settings of
// http.DefaultTransport: connections are kept and reused, HTTP/2 is spoken
// with servers that do. It speaks TLS and nothing else: http:// URLs and
// proxies, which would see or make other connections, are refused.
//
// A server that refuses us does so after our side of the handshake is over, and
// net/http then says no more than "remote error: tls: bad certificate". Hooks
// are told the cause; ExplainTransport puts it into the error.
func (d *Dialer) Transport() *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return d.connect(ctx, network, address, true)
		},
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return nil, fmt.Errorf("%s: http:// and proxies are not spoken here, as they would be plaintext; use an https:// URL and no proxy", address)
		},
		// Used only with a proxy, which DialContext refuses already.
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, VerifyConnection: func(tls.ConnectionState) error {
			return errors.New("a connection that was not dialled by sdk/mtls")
		}},
		ForceAttemptHTTP2:     len(d.core.protos) == 0 || slices.Contains(d.core.protos, "h2"),
		MaxIdleConns:          100,
		IdleConnTimeout:       90 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

// Recheck is as Server.Recheck.
func (d *Dialer) Recheck() { d.core.live.recheck() }

// Open is how many dialled connections are open.
func (d *Dialer) Open() int { return len(d.core.live.all()) }

// Ended is as Server.Ended.
func (d *Dialer) Ended() uint64 { return d.core.live.ended.Load() }

// Close closes every connection that it dialled and waits for its goroutines.
// What is dialled from then on fails with net.ErrClosed. A Dialer whose
// connections are all closed needs no Close.
func (d *Dialer) Close() error {
	d.core.live.closeAll()
	return nil
}
