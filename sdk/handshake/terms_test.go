package handshake

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
)

func TestWhatTheSidesDoNotAgreeOn(t *testing.T) {
	w := newWorld(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	server := func(change func(*tls.Config)) *party {
		c := &tls.Config{Certificates: []tls.Certificate{w.server}}
		change(c)
		return &party{config: c}
	}
	client := func(change func(*tls.Config)) *party {
		c := calling()
		change(c)
		return &party{config: c}
	}
	none := func(*tls.Config) {}
	pss1024 := w.root.issueFor(t, smallRSA(t), "spiffe://example.org/server", nil)
	runRows(t, []row{
		{"versions", server(func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }), client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
			verdict{ProtocolVersion, "", 0, []string{`for "localhost"`, "only unsupported versions"}}, verdict{ProtocolVersion, "", 70, nil}},
		{"versions, a client that is ahead", server(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), client(func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }),
			verdict{ProtocolVersion, "", 0, nil}, verdict{ProtocolVersion, "", 70, nil}},
		{"cipher suites", server(func(c *tls.Config) {
			c.CipherSuites, c.MaxVersion = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}, tls.VersionTLS12
		}), client(func(c *tls.Config) {
			c.CipherSuites, c.MaxVersion = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, tls.VersionTLS12
		}), verdict{CipherSuite, "", 0, nil}, verdict{CipherSuite, "", 40, nil}},
		{"groups", server(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768} }), client(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }),
			verdict{KeyExchange, "", 0, nil}, verdict{CipherSuite, "", 40, nil}},
		{"a key that is too short to sign with", server(func(c *tls.Config) { c.Certificates = []tls.Certificate{pss1024} }), client(none),
			verdict{Misconfigured, Own, 0, []string{"RSA key size too small"}}, verdict{CipherSuite, "", 40, nil}},
		{"application protocols", server(func(c *tls.Config) { c.NextProtos = []string{"h2"} }), client(func(c *tls.Config) { c.NextProtos = []string{"grpc-old"} }),
			verdict{ALPN, "", 0, []string{`"grpc-old"`}}, verdict{ALPN, "", 120, nil}},
		{"the server has no certificate for the name", server(func(c *tls.Config) {
			c.Certificates = nil
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
		}), client(none), verdict{UnknownServerName, Own, 0, []string{`for "localhost"`}}, verdict{UnknownServerName, "", 112, nil}},
		{"a key that is limited to signatures that nobody reads", server(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{w.root.issueFor(t, rsaKey, "spiffe://example.org/server", nil)}
			c.Certificates[0].SupportedSignatureAlgorithms = []tls.SignatureScheme{tls.PKCS1WithSHA1}
		}), client(none), verdict{Misconfigured, Own, 0, nil}, verdict{CipherSuite, "", 40, nil}},
	})
}

// deadline is a context whose deadline passes when over is closed.
type deadline struct {
	context.Context
	over chan struct{}
}

func (d *deadline) Done() <-chan struct{} { return d.over }

func (d *deadline) Err() error {
	select {
	case <-d.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestThisSide(t *testing.T) {
	w := newWorld(t)
	notReady := &identity.NotReady{Source: "unix:///run/legation/agent.sock"}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	short := 300 * time.Millisecond
	late := &deadline{t.Context(), make(chan struct{})}
	wait := func(c net.Conn) { io.Copy(io.Discard, c) }
	hangUp := func(c net.Conn) {}
	reset := func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }
	readHelloThen := func(then func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) { c.Read(make([]byte, 8192)); then(c) }
	}
	helloThenHangUp := func(c net.Conn) {
		tls.Client(deaf{c}, calling()).Handshake()
	}
	server := func() *party { return &party{config: serving(w.server), verify: w.judge(chaincheck.Client)} }
	client := func() *party { return &party{config: calling(w.client), verify: w.judge(chaincheck.Server)} }
	with := func(p *party, ctx context.Context) *party { p.ctx = ctx; return p }
	soon := func(p *party) *party { p.patience = short; return p }
	changed := func(p *party, change func(*tls.Config)) *party { change(p.config); return p }

	runRows(t, []row{
		{"the server has no identity yet", changed(server(), func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, notReady }
			c.Certificates = nil
		}), client(), verdict{NotReady, Own, 0, []string{"agent.sock"}}, verdict{PeerInternal, "", 80, []string{"no certificate yet"}}},
		{"the client has no identity yet", server(), changed(client(), func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, notReady }
		}), verdict{Closed, "", 0, []string{"refused our certificate without saying so"}}, verdict{NotReady, Own, 0, []string{"agent.sock"}}},
		{"own settings for this client cannot work", changed(server(), func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				bad := serving(w.server)
				bad.Certificates[0].PrivateKey = opaque{}
				return bad, nil
			}
		}), client(), verdict{Misconfigured, Own, 0, nil}, verdict{CipherSuite, "", 40, nil}},
		{"the client's settings cannot work", &party{raw: wait}, &party{config: &tls.Config{}}, verdict{}, verdict{Misconfigured, "", 0, []string{"ServerName"}}},
		{"the client says nothing", soon(server()), &party{raw: wait}, verdict{Timeout, "", 0, []string{"said nothing"}}, verdict{}},
		{"the server says nothing", &party{raw: wait}, soon(client()), verdict{}, verdict{Timeout, "", 0, []string{"answered nothing"}}},
		{"the client gives up", &party{raw: wait}, with(client(), canceled), verdict{}, verdict{Canceled, "", 0, []string{"gave up"}}},
		{"the client hangs up at once", server(), &party{raw: hangUp}, verdict{Closed, "", 0, []string{"port scan"}}, verdict{}},
		{"the client resets at once", server(), &party{raw: reset}, verdict{Closed, "", 0, nil}, verdict{}},
		{"the client hangs up after its hello", server(), &party{raw: helloThenHangUp}, verdict{Closed, "", 0, []string{"hello had come", `for "localhost"`}}, verdict{}},
		{"the server hangs up at the hello", &party{raw: readHelloThen(hangUp)}, client(), verdict{}, verdict{Closed, "", 0, []string{"answered nothing"}}},
		{"the server resets at the hello", &party{raw: readHelloThen(reset)}, client(), verdict{}, verdict{Closed, "", 0, nil}},
		{"verification takes too long", &party{config: serving(w.server), verify: func(ctx context.Context, _ tls.ConnectionState) error {
			close(late.over)
			<-ctx.Done()
			return ctx.Err()
		}, ctx: late}, &party{raw: func(c net.Conn) {
			tls.Client(c, calling(w.client)).HandshakeContext(t.Context())
			io.Copy(io.Discard, c)
		}}, verdict{Timeout, "", 0, []string{"certificate had come"}}, verdict{}},
	})
}

func TestWhatIsNotTLS(t *testing.T) {
	w := newWorld(t)
	// The bytes that real programs start with.
	for _, c := range []struct{ says, first string }{
		{"HTTP without TLS", "GET /v1/predict HTTP/1.1\r\nHost: model\r\n\r\n"},
		{"HTTP without TLS", "POST / HTTP/1.1\r\n\r\n"},
		{"HTTP/2 without TLS (h2c)", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n"},
		{"PROXY protocol, version 1", "PROXY TCP4 10.0.0.1 10.0.0.2 4711 443\r\n"},
		{"PROXY protocol, version 2", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"},
		{"PostgreSQL", "\x00\x00\x00\x08\x04\xd2\x16\x2f"},
		{"Redis", "*1\r\n$4\r\nPING\r\n"},
		{"SMTP", "EHLO mail.example\r\n"},
		{"unknown binary protocol", "\x00\x01\x02\x03\x04\x05"},
		{"unknown text protocol", "hello, server\r\n"},
	} {
		t.Run("a client of "+c.says, func(t *testing.T) {
			server := &party{config: serving(w.server)}
			meet(t, server, &party{raw: func(conn net.Conn) { io.WriteString(conn, c.first); io.Copy(io.Discard, conn) }})
			verdict{NotTLS, "", 0, []string{"does not speak TLS", c.says}}.check(t, server, Server)
		})
	}
	for _, c := range []struct{ says, first string }{
		{"an HTTP answer without TLS", "HTTP/1.1 400 Bad Request\r\n\r\n"},
		{"HTTP/2 without TLS (h2c)", "\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n"},
		{"SMTP or FTP", "220 mail.example ESMTP\r\n"},
	} {
		t.Run("a server of "+c.says, func(t *testing.T) {
			client := &party{config: calling()}
			meet(t, &party{raw: func(conn net.Conn) { io.WriteString(conn, c.first); io.Copy(io.Discard, conn) }}, client)
			verdict{NotTLS, "", 0, []string{"does not speak TLS", c.says}}.check(t, client, Client)
		})
	}
	// A server of TLS 1.1, to a client that asks for 1.2 and up.
	old := &party{config: calling()}
	meet(t, &party{raw: func(conn net.Conn) {
		io.WriteString(conn, "\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02"+strings.Repeat("r", 32)+"\x00\xc0\x09\x00")
		io.Copy(io.Discard, conn)
	}}, old)
	verdict{ProtocolVersion, "", 0, []string{"server selected unsupported protocol version"}}.check(t, old, Client)

	for _, c := range []struct {
		name, first string
		want        verdict
	}{
		{"SSL 2", "\x80\x2e\x01\x00\x02", verdict{ProtocolVersion, "", 0, []string{"SSL 2"}}},
		{"a hello that is none", "\x16\x03\x01\x00\x05hello", verdict{Protocol, "", 0, nil}},
		{"an oversized record", "\x16\x03\x01\xff\xff", verdict{Protocol, "", 0, nil}},
		{"an alert for a hello", "\x15\x03\x01\x00\x02\x02\x28", verdict{CipherSuite, "", 40, nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := &party{config: serving(w.server)}
			meet(t, server, &party{raw: func(conn net.Conn) { io.WriteString(conn, c.first); io.Copy(io.Discard, conn) }})
			c.want.check(t, server, Server)
		})
	}
}
