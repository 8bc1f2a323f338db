package mtls_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

// A server that is verified by its public name is taken back as any other: at
// the handshake, and while a connection is open.
func TestAPublicServerThatIsTakenBackIsRefusedAndLeft(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(ours, public *pkitest.Domain, cert *tls.Certificate)
	}{
		{"its key is denied", func(ours, _ *pkitest.Domain, cert *tls.Certificate) {
			sum := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
			ours.Deny(chaincheck.Denial{SPKI: hex.EncodeToString(sum[:])})
		}},
		{"its serial is denied", func(ours, _ *pkitest.Domain, cert *tls.Certificate) {
			ours.Deny(chaincheck.Denial{Serial: cert.Leaf.SerialNumber.Text(16)})
		}},
		{"its CA is denied", func(ours, public *pkitest.Domain, _ *tls.Certificate) {
			sum := sha256.Sum256(public.Issuing().Cert.RawSubjectPublicKeyInfo)
			ours.Deny(chaincheck.Denial{SPKI: hex.EncodeToString(sum[:])})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := pkitest.New(t, "example.org", nil)
			ours := pkitest.New(t, "ours.example", nil) // what the client believes
			public := pkitest.New(t, "public.example", nil)
			cert := publicCert(t, public, "model.example.com")
			l, _ := echo(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeID(d.ID(web)),
				Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }})
			dd := dialer(t, mtls.ClientConfig{Source: ours.SourceOf(d.Issue(web, nil)), ServerName: "model.example.com", Revocation: chaincheck.Prefer,
				Authorize: mtls.AuthorizeServerName([]*x509.Certificate{public.Root().Cert})})
			c, err := dial(t, dd, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			ours.Deny(chaincheck.Denial{Serial: "abcdef", Reason: "somebody else"})
			ours.RotateRoot(true) // nor do our roots concern a public server
			dd.Recheck()          // all are judged by now
			open(t, c)
			tt.take(ours, public, cert)
			closed(t, c)
			_, err = dial(t, dd, l.Addr().String())
			wantCause(t, err, handshake.Revoked)
		})
	}
}

// What an authoriser decided by is changed, and Recheck called, while a
// handshake is between its answer and its end.
func TestAHandshakeThatRacesARecheckLosesIt(t *testing.T) {
	var banned atomic.Bool
	var l *mtls.Listener
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Authorize = mtls.AuthorizeFunc(func(_ context.Context, r *mtls.Request) error {
			if banned.Load() {
				return errors.New("banned")
			}
			// The decision is made; before it is acted on, the data change.
			banned.Store(true)
			l.Recheck()
			return nil
		})
	})
	l = p.l
	if c, err := dial(t, dialer(t, p.client), p.address()); err == nil {
		t.Error("a connection that was let in by what no longer holds is open")
		c.Close()
	}
}

// Whoever is banned while the source of identity is away is closed too.
func TestRecheckCountsWhileTheSourceHasNothing(t *testing.T) {
	var banned atomic.Bool
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Authorize = mtls.AuthorizeFunc(func(context.Context, *mtls.Request) error {
			if banned.Load() {
				return errors.New("banned")
			}
			return nil
		})
	})
	c, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	p.server.Source.(*identity.Memory).Fail(errors.New("the agent is gone"))
	banned.Store(true)
	p.l.Recheck()
	closed(t, c)
}

// A client that asks for the very text by which a server says "none of these".
func TestA36NoApplicationProtocolIsMadeUp(t *testing.T) {
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) { s.NextProtos = mtls.HTTPProtos })
	for _, made := range []string{"none of h2, http/1.1", "none of", "h2, http/1.1", "h3", "\x00", "H2"} {
		config := plain(p.Issue(web, nil))
		config.NextProtos = []string{made}
		c, err := plainDial(t, p.address(), config)
		if err == nil {
			t.Errorf("%q was agreed on: %q", made, c.ConnectionState().NegotiatedProtocol)
		}
	}
}

// One connection whose authoriser hangs does not keep others from being closed.
func TestAnAuthoriserThatHangsHoldsUpNoRevocation(t *testing.T) {
	var hang atomic.Bool
	release := make(chan struct{})
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Authorize = mtls.AuthorizeFunc(func(ctx context.Context, r *mtls.Request) error {
			if hang.Load() {
				<-release
			}
			return nil
		})
	})
	defer close(release)
	for range 8 {
		if _, err := dial(t, dialer(t, mtls.ClientConfig{Source: p.Source("/other"), Authorize: p.client.Authorize}), p.address()); err != nil {
			t.Fatal(err)
		}
	}
	bad, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	p.Deny(chaincheck.Denial{ID: p.ID(web)})
	closed(t, bad) // the authoriser has not answered yet
}

// HTTP/2 connections are kept by host: one that was authorised for a host is
// not used for another, at the same address or not.
func TestA42AConnectionOfOneHostIsNotUsedForAnother(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{
		"a.test": {d.ID(model)}, "b.test": {d.ID("/b")},
	}), Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}})
	transport := dd.Transport()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	if _, err := get(t, client, "a.test:443"); err != nil {
		t.Fatal(err)
	}
	_, err := get(t, client, "b.test:443")
	if e, ok := errors.AsType[*handshake.Error](err); !ok || e.Cause != handshake.WrongName {
		t.Errorf("by the connection of a.test: %v", err)
	}
	if _, err := get(t, client, "c.test:443"); err == nil || !strings.Contains(err.Error(), "c.test") {
		t.Errorf("a host that is not named: %v", err)
	}
}

// The trust changes between the answer of the verifier and the end of the
// handshake, and whoever watches has judged everybody else already.
func TestAHandshakeThatEndsAfterTheTrustChangedIsJudgedByIt(t *testing.T) {
	var armed atomic.Bool
	var first net.Conn
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Authorize = mtls.AuthorizeFunc(func(_ context.Context, r *mtls.Request) error {
			if r.Peer.ID == d.ID(web) && armed.CompareAndSwap(true, false) {
				d.Deny(chaincheck.Denial{ID: d.ID("/first")})
				d.Deny(chaincheck.Denial{ID: d.ID(web)})
				closed(t, first)
			}
			return nil
		})
	})
	var err error
	if first, err = dial(t, dialer(t, mtls.ClientConfig{Source: p.Source("/first"), Authorize: p.client.Authorize}), p.address()); err != nil {
		t.Fatal(err)
	}
	// The client does not hear of the denial, so that it is not what closes.
	config := mtls.ClientConfig{Source: identity.NewMemory(p.Snapshot(web)), Authorize: p.client.Authorize}
	armed.Store(true)
	if _, err := dial(t, dialer(t, config), p.address()); err == nil {
		t.Error("the denied peer is connected")
	}
	p.seen.says(t, handshake.Revoked)
}

func TestAServersAuthoriserSeesTheNameThatWasAskedFor(t *testing.T) {
	host := make(chan string, 1)
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, c *mtls.ClientConfig) {
		c.ServerName = "Models.Example.COM"
		s.Authorize = mtls.AuthorizeFunc(func(_ context.Context, r *mtls.Request) error {
			select {
			case host <- r.Host:
			default:
			}
			return nil
		})
	})
	if _, err := dial(t, dialer(t, p.client), p.address()); err != nil {
		t.Fatal(err)
	}
	if got := <-host; got != "models.example.com" {
		t.Errorf("it sees %q", got)
	}
}

// Who watches sleeps until the first certificate ends that it knows of, or for
// a minute; one that ends earlier and comes later wakes it.
func TestAConnectionThatEndsBeforeTheOthersEndsInTime(t *testing.T) {
	begin := time.Now().Truncate(time.Second)
	var passed atomic.Int64 // the server's clock stands still until the connection is there
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.ExpiryGrace, s.Now = time.Millisecond, func() time.Time { return begin.Add(time.Duration(passed.Load())) }
	})
	long, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	brief := p.Issue("/brief", func(c *x509.Certificate) { c.NotAfter = begin.Add(time.Second) })
	c, err := dial(t, dialer(t, mtls.ClientConfig{Source: p.SourceOf(brief), Authorize: p.client.Authorize}), p.address())
	if err != nil {
		t.Fatal(err)
	}
	passed.Store(int64(2 * time.Second))
	start := time.Now()
	closed(t, c)
	if took := time.Since(start); took > 45*time.Second {
		t.Errorf("closed after %s: nobody was woken", took)
	}
	open(t, long)
}

func TestAServerWithoutACertificateSaysSo(t *testing.T) {
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Source = identity.NewMemory(d.With(nil))
	})
	if _, err := dial(t, dialer(t, p.client), p.address()); err == nil {
		t.Error("connected")
	}
	p.seen.says(t, handshake.NotReady, "nothing to present")
}

// TLS that somebody speaks inside a connection of ours has a peer of its own,
// who is not ours.
func TestWhoSpeaksTLSInsideIsNotThePeerOutside(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	l, err := mtls.Listen("tcp", "127.0.0.1:0", mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cert := d.Issue("/inside", nil)
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() {
		outside, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer outside.Close()
		if p, ok := mtls.PeerOf(&wrapped{outside}); !ok || p.ID != d.ID(web) {
			t.Errorf("outside, wrapped: %v %v", p.ID, ok)
		}
		inside := tls.Server(outside, &tls.Config{Certificates: []tls.Certificate{*cert}})
		if err := inside.Handshake(); err != nil {
			t.Error(err)
		}
		for name, c := range map[string]net.Conn{"inside": inside, "inside, wrapped": &wrapped{inside}} {
			if p, ok := mtls.PeerOf(c); ok {
				t.Errorf("%s, whose client showed nothing: %v", name, p.ID)
			}
			if p, ok := identity.PeerFromContext(mtls.ConnContext(t.Context(), c)); ok {
				t.Errorf("%s, requests are of: %v", name, p.ID)
			}
		}
	})
	c, err := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model))}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	inside := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	if err := inside.Handshake(); err != nil {
		t.Fatal(err)
	}
	if p, ok := mtls.PeerOf(inside); ok {
		t.Errorf("the client believes to talk to %v inside", p.ID)
	}
}

type wrapped struct{ net.Conn }

func (w *wrapped) NetConn() net.Conn { return w.Conn }

func TestHostsThatAreNamedTwiceAreRefused(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	_, err := mtls.NewDialer(mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeHosts(map[string][]spiffeid.ID{
		"Model.test": {d.ID(model)}, "model.test": {d.ID("/old")},
	})})
	if err == nil || !strings.Contains(err.Error(), "model.test") {
		t.Errorf("which of the two counts: %v", err)
	}
}
