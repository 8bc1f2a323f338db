package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/handshake"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/mtls"
)

func TestA35OpenConnectionsEndWhenTheirPeerIsBelievedNoLonger(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(p *pair, victim, bystander *x509.Certificate)
		says string
	}{
		{"its identity is denied", func(p *pair, victim, _ *x509.Certificate) {
			p.Deny(chaincheck.Denial{ID: p.ID(web), Reason: "stolen", At: time.Now()})
		}, "stolen"},
		{"its serial is denied", func(p *pair, victim, _ *x509.Certificate) {
			p.Deny(chaincheck.Denial{Serial: victim.SerialNumber.Text(16), Reason: "stolen", At: time.Now()})
		}, "stolen"},
		{"its certificate is on the CRL", func(p *pair, victim, _ *x509.Certificate) { p.Revoke(victim) }, "revoked at"},
		{"its root is gone", nil, "no path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, nil)
			victim, bystander := p.Issue(web, nil), p.Issue("/ns/shop/sa/other", nil)
			if tt.take == nil {
				// Who renews under the new root before the old one goes stays.
				p.RotateRoot(false)
				bystander = p.Issue("/ns/shop/sa/other", nil)
				tt.take, tt.says = func(p *pair, _, _ *x509.Certificate) { p.RetireOldRoots() }, ""
			}
			connect := func(name string, cert *tlsCert) net.Conn {
				d := dialer(t, mtls.ClientConfig{Source: identity.NewMemory(p.With(cert)), Authorize: p.client.Authorize})
				c, err := dial(t, d, p.address())
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return c
			}
			bad, good := connect("victim", victim), connect("bystander", bystander)
			start := time.Now()
			tt.take(p, victim.Leaf, bystander.Leaf)
			closed(t, bad)
			t.Logf("closed %s after the change", time.Since(start))
			open(t, good)
			until(t, "the server forgets it", func() bool { return p.l.Open() == 1 })
			until(t, "its handler ends", func() bool { return p.seen.endings() > 0 })
			until(t, "it is counted", func() bool { return p.l.Ended() == 1 })
			p.seen.mu.Lock()
			defer p.seen.mu.Unlock()
			end, ok := errors.AsType[*mtls.ClosedError](errors.Join(p.seen.ends...))
			if !ok || end.ID != p.ID(web) || !strings.Contains(end.Error(), tt.says) || !errors.Is(end, net.ErrClosed) {
				t.Errorf("the server's side ended with %v", p.seen.ends)
			}
		})
	}
}

type tlsCert = tls.Certificate

func TestDialledConnectionsEndToo(t *testing.T) {
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Source = identity.NewMemory(d.Snapshot(model)) // does not follow: the client closes
	})
	d := dialer(t, p.client)
	c, err := dial(t, d, p.address())
	if err != nil {
		t.Fatal(err)
	}
	h := d.Transport()
	defer h.CloseIdleConnections()
	p.Deny(chaincheck.Denial{ID: p.ID(model), Reason: "stolen", At: time.Now()})
	err = closed(t, c)
	if end, ok := errors.AsType[*mtls.ClosedError](err); !ok || end.ID != p.ID(model) {
		t.Errorf("the read says %v", err)
	}
	if _, err := dial(t, d, p.address()); err == nil {
		t.Error("dialled again")
	} else {
		wantCause(t, err, "revoked", "stolen")
	}
	until(t, "the dialer forgets and counts it", func() bool { return d.Open() == 0 && d.Ended() == 1 })
}

func TestARenewedIdentityOfOursClosesNothing(t *testing.T) {
	p := newPair(t, nil)
	source := p.Source(web)
	d := dialer(t, mtls.ClientConfig{Source: source, Authorize: p.client.Authorize})
	c, err := dial(t, d, p.address())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		source.Set(p.Snapshot(web))
		p.server.Source.(*identity.Memory).Set(p.Snapshot(model))
		p.Deny(chaincheck.Denial{ID: p.ID("/ns/shop/sa/nobody"), Reason: "test", At: time.Now()})
	}
	open(t, c)
	// What is presented from now on is the newest.
	next, err := dial(t, d, p.address())
	if err != nil {
		t.Fatal(err)
	}
	mine, _, _ := p.server.Source.Current()
	if peer, ok := mtls.PeerOf(next); !ok || !peer.Certificate.Equal(mine.Certificate.Leaf) {
		t.Error("an old certificate is presented after renewal")
	}
}

func TestAListThatIsMissingClosesNothingThatIsOpen(t *testing.T) {
	p := newPair(t, nil)
	d := dialer(t, p.client)
	c, err := dial(t, d, p.address())
	if err != nil {
		t.Fatal(err)
	}
	p.PublishNoCRLs()
	open(t, c)
	_, err = dial(t, d, p.address())
	wantCause(t, err, "revocation_unknown", "example.org", "SPIRE", "chaincheck.Prefer")
	open(t, c)
}

func TestASourceThatFailsClosesNothingThatIsOpen(t *testing.T) {
	p := newPair(t, nil)
	d := dialer(t, p.client)
	c, err := dial(t, d, p.address())
	if err != nil {
		t.Fatal(err)
	}
	p.server.Source.(*identity.Memory).Fail(errors.New("the agent is gone"))
	p.client.Source.(*identity.Memory).Fail(errors.New("the agent is gone"))
	open(t, c)
}

// A handshake that is under way while the trust changes: whichever comes
// first, no connection of the denied peer stays.
func TestAHandshakeThatRacesARevocationLosesIt(t *testing.T) {
	p := newPair(t, nil)
	for round := range 20 {
		d := dialer(t, mtls.ClientConfig{Source: identity.NewMemory(p.Snapshot(web)), Authorize: p.client.Authorize})
		var conns [4]net.Conn
		var done sync.WaitGroup
		for n := range conns {
			done.Go(func() {
				c, err := d.DialContext(context.Background(), "tcp", p.address())
				if err == nil {
					conns[n] = c
				}
			})
		}
		time.Sleep(time.Duration(round%5) * 200 * time.Microsecond) // spreads the change over the handshake
		p.Deny(chaincheck.Denial{ID: p.ID(web), Reason: "stolen", At: time.Now()})
		done.Wait()
		for _, c := range conns {
			if c != nil {
				closed(t, c)
				c.Close()
			}
		}
		until(t, "no connection of the denied is open", func() bool { return p.l.Open() == 0 })
		p.Allow()
	}
}

func TestRecheckAsksTheProgramsOwnAuthoriserAgain(t *testing.T) {
	var banned atomic.Bool
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Authorize = mtls.AuthorizeFunc(func(_ context.Context, r *mtls.Request) error {
			if r.Peer.ID == d.ID(web) && banned.Load() {
				return errors.New("banned")
			}
			return nil
		})
	})
	bad, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	good, err := dial(t, dialer(t, mtls.ClientConfig{Source: p.Source("/other"), Authorize: p.client.Authorize}), p.address())
	if err != nil {
		t.Fatal(err)
	}
	p.l.Recheck()
	open(t, bad)
	banned.Store(true)
	p.l.Recheck()
	closed(t, bad)
	open(t, good)
}

// clock is a wall clock that a test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func TestAConnectionMayOutliveItsPeersCertificateByTheGrace(t *testing.T) {
	for _, tt := range []struct {
		name   string
		grace  time.Duration
		passed time.Duration // since the certificate expired
		ends   bool
	}{
		{"within the default of an hour", 0, 30 * time.Minute, false},
		{"after the default of an hour", 0, 61 * time.Minute, true},
		{"after a short one", time.Millisecond, time.Second, true},
		{"for ever", -1, 1000 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c clock
			p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
				s.Now, s.ExpiryGrace = c.now, tt.grace
			})
			conn, err := dial(t, dialer(t, p.client), p.address())
			if err != nil {
				t.Fatal(err)
			}
			c.ahead.Store(int64(24*time.Hour + tt.passed))
			// The watcher looks at the clock each minute, and when told of
			// anything: a change that concerns nobody.
			p.Deny(chaincheck.Denial{ID: p.ID("/nobody"), Reason: "test", At: time.Now()})
			if !tt.ends {
				open(t, conn)
				p.Deny(chaincheck.Denial{ID: p.ID(web), Reason: "stolen", At: time.Now()})
				closed(t, conn) // expired, and still revocable
				return
			}
			closed(t, conn)
			if _, err := dial(t, dialer(t, p.client), p.address()); err == nil {
				t.Error("an expired certificate was accepted")
			}
			p.seen.says(t, handshake.Expired)
		})
	}
}

func TestARootThatGoesEndsConnectionsWhoseCertificateHasExpired(t *testing.T) {
	var c clock
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) { s.Now = c.now })
	conn, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	c.ahead.Store(int64(24*time.Hour + 10*time.Minute))
	p.RotateRoot(false)
	open(t, conn)
	p.RetireOldRoots()
	closed(t, conn)
}

func TestHTTPClientsAreAskedToReconnectOnceTheirCertificateExpired(t *testing.T) {
	var c clock
	d := pkitest.New(t, "example.org", nil)
	address := serve(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeMemberOf(d.TrustDomain), Now: c.now})
	for _, protos := range [][]string{{"http/1.1"}, {"h2"}} {
		t.Run(protos[0], func(t *testing.T) {
			c.ahead.Store(0)
			var dials atomic.Int32
			client := &http.Client{Transport: dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), NextProtos: protos,
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					dials.Add(1)
					return (&net.Dialer{}).DialContext(ctx, network, address)
				}}).Transport()}
			defer client.CloseIdleConnections()
			must := func() {
				t.Helper()
				if _, err := get(t, client, address); err != nil {
					t.Fatal(err)
				}
			}
			must()
			must()
			if n := dials.Load(); n != 1 {
				t.Fatalf("%d connections before the expiry", n)
			}
			c.ahead.Store(int64(24*time.Hour + time.Minute))
			// The clock is looked at each minute, and when trust changes.
			d.Deny(chaincheck.Denial{ID: d.ID("/nobody"), Reason: "test", At: time.Now()})
			until(t, "the client dials anew", func() bool {
				get(t, client, address) // refused on the new connection: its certificate has expired
				return dials.Load() > 1
			})
			c.ahead.Store(0)
			must()
		})
	}
}
