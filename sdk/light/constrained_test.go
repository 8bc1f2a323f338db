package light_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/light"
	"github.com/legation-io/legation/sdk/mtls"
)

func only(id spiffeid.ID) func(spiffeid.ID) error {
	return func(got spiffeid.ID) error {
		if got != id {
			return errors.New("wanted is " + id.String())
		}
		return nil
	}
}

// echo serves a listener until the test ends; what it accepted comes on the
// channel.
func echo(t *testing.T, c light.Constrained) (addr string, accepted chan *light.ConstrainedConn) {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := light.ListenConstrained(raw, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted = make(chan *light.ConstrainedConn, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn.(*light.ConstrainedConn)
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return raw.Addr().String(), accepted
}

func exchange(c net.Conn, text string) error {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return errors.New("another text came back: " + string(got))
	}
	return nil
}

func TestConstrainedIsMutualTLS12(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	addr, accepted := echo(t, light.Constrained{Source: d.Source("/server"), Authorize: only(d.ID("/client"))})
	conn, err := light.DialConstrained(t.Context(), "tcp", addr, light.Constrained{Source: d.Source("/client"), Authorize: only(d.ID("/server"))})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := exchange(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	cs := conn.ConnectionState()
	if cs.Version != tls.VersionTLS12 || !strings.Contains(tls.CipherSuiteName(cs.CipherSuite), "ECDHE_ECDSA_WITH_AES") || cs.DidResume {
		t.Errorf("%s %s resumed %t", tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite), cs.DidResume)
	}
	if server := <-accepted; conn.PeerID() != d.ID("/server") || server.PeerID() != d.ID("/client") {
		t.Errorf("the peers are %s and %s", conn.PeerID(), server.PeerID())
	}
}

// TestConstrainedMeetsTheConstrainedProfile: a small machine calls a service on
// sdk/mtls that lets small machines in, and the other way round.
func TestConstrainedMeetsTheConstrainedProfile(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source("/server"), Authorize: mtls.AuthorizeID(d.ID("/client")), Profile: mtls.Constrained})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	conn, err := light.DialConstrained(t.Context(), "tcp", l.Addr().String(), light.Constrained{Source: d.Source("/client"), Authorize: only(d.ID("/server"))})
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(conn, "hello"); err != nil {
		t.Error(err)
	}
	conn.Close()
	<-done

	addr, _ := echo(t, light.Constrained{Source: d.Source("/server"), Authorize: only(d.ID("/client"))})
	dialer, err := mtls.NewDialer(mtls.ClientConfig{Source: d.Source("/client"), Authorize: mtls.AuthorizeID(d.ID("/server")), Profile: mtls.Constrained})
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	c, err := dialer.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := exchange(c, "hello"); err != nil {
		t.Error(err)
	}
}

func TestConstrainedRefuses(t *testing.T) {
	d, foreign := pkitest.New(t, "example.org", nil), pkitest.New(t, "foreign.example", nil)
	client, server := d.ID("/client"), d.ID("/server")
	long := d.Issue("/server", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(73 * time.Hour) })
	revoked := d.Issue("/server", nil)
	d.Revoke(revoked.Leaf)
	for name, row := range map[string]struct {
		server identity.Source
		want   string
	}{
		"another workload than the one wanted":      {d.Source("/other"), "not authorised"},
		"another trust domain":                      {foreign.Source("/server"), "wrong_trust_domain"},
		"a certificate that lives too long":         {d.SourceOf(long), "lifetime"},
		"a revoked certificate":                     {d.SourceOf(revoked), "revoked"},
		"a server that has no certificate at first": {&identity.Memory{}, "remote error"},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := echo(t, light.Constrained{Source: row.server, Authorize: func(spiffeid.ID) error { return nil }})
			conn, err := light.DialConstrained(t.Context(), "tcp", addr, light.Constrained{Source: d.Source("/client"), Authorize: only(server)})
			if err == nil {
				conn.Close()
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v does not say %q", err, row.want)
			}
		})
	}
	t.Run("a client that the server does not want", func(t *testing.T) {
		addr, _ := echo(t, light.Constrained{Source: d.Source("/server"), Authorize: only(spiffeid.RequireFromString("spiffe://example.org/x"))})
		conn, err := light.DialConstrained(t.Context(), "tcp", addr, light.Constrained{Source: d.Source("/client"), Authorize: only(server)})
		if err == nil {
			defer conn.Close()
			err = exchange(conn, "hello")
		}
		if err == nil {
			t.Error("it was served")
		}
	})
	for name, c := range map[string]light.Constrained{
		"no Source":    {Authorize: only(client)},
		"no Authorize": {Source: d.Source("/server")},
	} {
		if _, err := light.ListenConstrained(nil, c); err == nil {
			t.Errorf("a server with %s was made", name)
		}
		if _, err := light.DialConstrained(t.Context(), "tcp", "127.0.0.1:1", c); err == nil || !strings.Contains(err.Error(), "is not set") {
			t.Errorf("a client with %s: %v", name, err)
		}
	}
}

// TestA36ConstrainedIsNoWayDown: a peer that speaks TLS 1.3, or that offers
// weaker suites or no certificate, gets nowhere.
func TestA36ConstrainedIsNoWayDown(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	addr, _ := echo(t, light.Constrained{Source: d.Source("/server"), Authorize: only(d.ID("/client"))})
	own := d.Issue("/client", nil)
	for name, config := range map[string]*tls.Config{
		"TLS 1.3 alone":    {MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*own}},
		"TLS 1.1":          {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, Certificates: []tls.Certificate{*own}},
		"CBC":              {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}, Certificates: []tls.Certificate{*own}},
		"ChaCha20":         {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}, Certificates: []tls.Certificate{*own}},
		"no certificate":   {MaxVersion: tls.VersionTLS12},
		"RSA key exchange": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, Certificates: []tls.Certificate{*own}},
	} {
		t.Run(name, func(t *testing.T) {
			config.InsecureSkipVerify = true
			raw, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(raw, config)
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := conn.HandshakeContext(ctx); err == nil {
				err = exchange(conn, "hello")
				if err == nil {
					t.Error("it was served")
				}
			}
		})
	}
	t.Run("a server that has TLS 1.3 and CBC", func(t *testing.T) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*d.Issue("/server", nil)}, ClientAuth: tls.RequireAnyClientCert})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_ = c.(*tls.Conn).Handshake()
				c.Close()
			}
		}()
		if conn, err := light.DialConstrained(t.Context(), "tcp", l.Addr().String(), light.Constrained{Source: d.Source("/client"), Authorize: only(d.ID("/server"))}); err == nil {
			conn.Close()
			t.Error("TLS 1.3 was spoken")
		}
	})
}

// TestA25ConstrainedConnectionsEndWithTheirPeers: no resumption, and open
// connections of whoever was taken back fail at the next byte.
func TestA25ConstrainedConnectionsEndWithTheirPeers(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	source := d.Source("/client")
	snapshot, _, err := source.Current()
	if err != nil {
		t.Fatal(err)
	}
	addr, accepted := echo(t, light.Constrained{Source: d.Source("/server"), Authorize: func(spiffeid.ID) error { return nil }})
	dial := func(s identity.Source) *light.ConstrainedConn {
		conn, err := light.DialConstrained(t.Context(), "tcp", addr, light.Constrained{Source: s, Authorize: only(d.ID("/server"))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := exchange(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	bad, bystander := dial(source), dial(d.Source("/bystander"))
	<-accepted
	<-accepted
	d.Revoke(snapshot.Certificate.Leaf)
	if err := exchange(bad, "again"); err == nil {
		t.Error("a revoked peer's connection goes on")
	}
	if err := exchange(bystander, "again"); err != nil {
		t.Errorf("a bystander's connection ended: %v", err)
	}
	d.Deny(chaincheck.Denial{ID: d.ID("/bystander")})
	if err := exchange(bystander, "once more"); err == nil {
		t.Error("a denied peer's connection goes on")
	}
}

// What else is wrong with a peer by now does not hide that it was taken back.
func TestA25ConstrainedPeersThatAreTakenBackLateEndToo(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(d *pkitest.Domain, own *identity.Memory, late *atomic.Int64)
		ends bool
	}{
		{"its certificate has expired", func(_ *pkitest.Domain, _ *identity.Memory, late *atomic.Int64) {
			late.Store(int64(24*time.Hour + 10*time.Minute))
		}, false},
		{"its certificate expired long ago", func(_ *pkitest.Domain, _ *identity.Memory, late *atomic.Int64) { late.Store(int64(26 * time.Hour)) }, true},
		{"its certificate expired long ago, and we have none", func(_ *pkitest.Domain, own *identity.Memory, late *atomic.Int64) {
			own.Fail(errors.New("the agent is gone"))
			late.Store(int64(26 * time.Hour))
		}, true},
		{"we have no certificate", func(_ *pkitest.Domain, own *identity.Memory, _ *atomic.Int64) {
			own.Fail(errors.New("the agent is gone"))
		}, false},
		{"the lists are gone", func(d *pkitest.Domain, _ *identity.Memory, _ *atomic.Int64) { d.PublishNoCRLs() }, false},
		{"its certificate has expired, and it is denied", func(d *pkitest.Domain, _ *identity.Memory, late *atomic.Int64) {
			late.Store(int64(24*time.Hour + 10*time.Minute))
			d.Deny(chaincheck.Denial{ID: d.ID("/client")})
		}, true},
		{"its certificate has expired, and its root is gone", func(d *pkitest.Domain, _ *identity.Memory, late *atomic.Int64) {
			late.Store(int64(24*time.Hour + 10*time.Minute))
			d.RotateRoot(true)
		}, true},
		{"the lists are gone, and it is denied", func(d *pkitest.Domain, _ *identity.Memory, _ *atomic.Int64) {
			d.PublishNoCRLs()
			d.Deny(chaincheck.Denial{ID: d.ID("/client")})
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := pkitest.New(t, "example.org", nil)
			var late atomic.Int64
			own := d.Source("/server")
			addr, _ := echo(t, light.Constrained{Source: own, Authorize: func(spiffeid.ID) error { return nil },
				Now: func() time.Time { return time.Now().Add(time.Duration(late.Load())) }})
			conn, err := light.DialConstrained(t.Context(), "tcp", addr, light.Constrained{Source: identity.NewMemory(d.Snapshot("/client")), Authorize: only(d.ID("/server"))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if err := exchange(conn, "hello"); err != nil {
				t.Fatal(err)
			}
			d.Deny(chaincheck.Denial{ID: d.ID("/nobody")}) // the trust changes in any case
			tt.then(d, own, &late)
			if err := exchange(conn, "again"); (err != nil) != tt.ends {
				t.Errorf("it says %v", err)
			}
		})
	}
}
