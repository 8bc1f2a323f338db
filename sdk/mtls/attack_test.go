package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
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

// tickets is a session cache that counts.
type tickets struct {
	tls.ClientSessionCache
	put atomic.Int32
}

func newTickets() *tickets { return &tickets{ClientSessionCache: tls.NewLRUClientSessionCache(8)} }

func (c *tickets) Put(key string, s *tls.ClientSessionState) {
	if s != nil {
		c.put.Add(1)
	}
	c.ClientSessionCache.Put(key, s)
}

func TestA25NoSessionIsResumedWhateverChanges(t *testing.T) {
	var banned atomic.Bool
	for _, tt := range []struct {
		name    string
		change  func(*pair, *tls.Certificate)
		refused bool
	}{
		{"nothing changes", func(*pair, *tls.Certificate) {}, false},
		{"the root was rotated out", func(p *pair, _ *tls.Certificate) { p.RotateRoot(true) }, true},
		{"the certificate was revoked", func(p *pair, c *tls.Certificate) { p.Revoke(c.Leaf) }, true},
		{"the identity was denied", func(p *pair, _ *tls.Certificate) {
			p.Deny(chaincheck.Denial{ID: p.ID(web), Reason: "stolen", At: time.Now()})
		}, true},
		{"the policy was tightened", func(*pair, *tls.Certificate) { banned.Store(true) }, true},
	} {
		for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
			t.Run(tt.name+", "+tls.VersionName(version), func(t *testing.T) {
				banned.Store(false)
				p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
					s.Profile = mtls.Constrained
					s.Authorize = mtls.AuthorizeFunc(func(context.Context, *mtls.Request) error {
						if banned.Load() {
							return errors.New("tightened")
						}
						return nil
					})
				})
				cert := p.Issue(web, nil)
				cache := newTickets()
				config := plain(cert)
				config.ClientSessionCache, config.ServerName, config.MaxVersion = cache, "model", version
				for range 2 {
					c, err := plainDial(t, p.address(), config)
					if err != nil {
						t.Fatal(err)
					}
					if cs := c.ConnectionState(); cs.DidResume || cs.Version != version {
						t.Fatalf("resumed %v, version %s", cs.DidResume, tls.VersionName(cs.Version))
					}
					c.Close()
				}
				tt.change(p, cert)
				c, err := plainDial(t, p.address(), config)
				if refused := err != nil; refused != tt.refused {
					t.Errorf("refused %v: %v", refused, err)
				}
				if c != nil && c.ConnectionState().DidResume {
					t.Error("a session was resumed")
				}
				if n := cache.put.Load(); n != 0 {
					t.Errorf("%d tickets were sent", n)
				}
			})
		}
	}
}

// A server that gives tickets away gets none of them back, and its client says
// in no hello that it could resume.
func TestA25OurClientsKeepNoTickets(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	var hellos, resumed atomic.Int32
	cert := d.Issue(model, nil)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			hellos.Add(1)
			const preSharedKey, earlyData, sessionTicket = 41, 42, 35
			for _, e := range []uint16{preSharedKey, earlyData, sessionTicket} {
				if slices.Contains(hello.Extensions, e) {
					t.Errorf("the hello has the extension %d", e)
				}
			}
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer c.Close()
				io.Copy(c, c)
				if c.(*tls.Conn).ConnectionState().DidResume {
					resumed.Add(1)
				}
			})
		}
	})
	dd := dialer(t, mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), Profile: mtls.Constrained, ServerName: "model"})
	for range 3 {
		c, err := dial(t, dd, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	d.Revoke(cert.Leaf)
	if _, err := dial(t, dd, l.Addr().String()); err == nil {
		t.Error("a revoked server was accepted")
	} else {
		wantCause(t, err, handshake.Revoked)
	}
	l.Close()
	done.Wait()
	if hellos.Load() != 4 || resumed.Load() != 0 {
		t.Errorf("%d hellos, %d resumed", hellos.Load(), resumed.Load())
	}
}

func TestA27CertificatesForOtherPurposesAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		usages []x509.ExtKeyUsage
		client bool // good as a client's
		server bool
	}{
		{"both", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, true, true},
		{"servers only", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, false, true},
		{"clients only", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, true, false},
		{"mail only", []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			usages := func(c *x509.Certificate) { c.ExtKeyUsage = tt.usages }
			p := newPair(t, func(d *pkitest.Domain, _ *mtls.ServerConfig, c *mtls.ClientConfig) {
				c.Source = d.SourceOf(d.Issue(web, usages))
			})
			_, err := dial(t, dialer(t, p.client), p.address())
			if (err == nil) != tt.client {
				t.Errorf("as a client's: %v", err)
			}
			if !tt.client {
				p.seen.says(t, handshake.BadUsage)
			}
			p = newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
				s.Source = d.SourceOf(d.Issue(model, usages))
			})
			_, err = dial(t, dialer(t, p.client), p.address())
			if (err == nil) != tt.server {
				t.Errorf("as a server's: %v", err)
			}
			if err != nil {
				wantCause(t, err, handshake.BadUsage)
			}
		})
	}
}

func TestA36NothingWeakerIsSpoken(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server func(*mtls.ServerConfig)
		client func(*tls.Config)
		want   handshake.Cause // at the server; empty is accepted
	}{
		{"TLS 1.3", nil, nil, ""},
		{"TLS 1.2", nil, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, handshake.ProtocolVersion},
		{"TLS 1.2 where small machines are let in", func(s *mtls.ServerConfig) { s.Profile = mtls.Constrained },
			func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, ""},
		{"TLS 1.1 even there", func(s *mtls.ServerConfig) { s.Profile = mtls.Constrained },
			func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, handshake.ProtocolVersion},
		{"CBC suites even there", func(s *mtls.ServerConfig) { s.Profile = mtls.Constrained }, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}, handshake.CipherSuite},
		{"ChaCha20 even there", func(s *mtls.ServerConfig) { s.Profile = mtls.Constrained }, func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}
		}, handshake.CipherSuite},
		{"a group that is not offered", nil, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} }, handshake.KeyExchange},
		{"no certificate", nil, func(c *tls.Config) { *c = *plain(nil) }, handshake.NoCertificate},
		{"another application protocol", func(s *mtls.ServerConfig) { s.NextProtos = []string{"h2"} },
			func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }, handshake.ALPN},
		{"no application protocol where one may be missing", func(s *mtls.ServerConfig) { s.NextProtos = []string{"h2"} }, nil, ""},
		{"no application protocol where one is required", func(s *mtls.ServerConfig) { s.NextProtos, s.RequireALPN = []string{"h2"}, true }, nil, handshake.ALPN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
				if tt.server != nil {
					tt.server(s)
				}
			})
			config := plain(p.Issue(web, nil))
			if tt.client != nil {
				tt.client(config)
			}
			_, err := plainDial(t, p.address(), config)
			if (err == nil) != (tt.want == "") {
				t.Fatalf("the client says %v", err)
			}
			if tt.want != "" {
				p.seen.says(t, tt.want)
			}
		})
	}
	t.Run("plaintext", func(t *testing.T) {
		p := newPair(t, nil)
		c, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if got, _ := io.ReadAll(c); strings.Contains(string(got), "HTTP") {
			t.Errorf("it answers %q", got)
		}
		p.seen.says(t, handshake.NotTLS)
	})
	t.Run("a server that knows no application protocol", func(t *testing.T) {
		p := newPair(t, func(_ *pkitest.Domain, _ *mtls.ServerConfig, c *mtls.ClientConfig) {
			c.NextProtos, c.RequireALPN = []string{"h2"}, true
		})
		_, err := dial(t, dialer(t, p.client), p.address())
		wantCause(t, err, handshake.ALPN, `""`, "h2")
	})
}

// A proxy between the two changes the hello, as a downgrade would: what the
// two ends compute of the hello differs, and the handshake ends.
func TestA36ADowngradeInBetweenIsNoticed(t *testing.T) {
	for _, tt := range []struct {
		name     string
		old, new string
	}{
		{"TLS 1.3 taken out of the versions", "\x00\x2b\x00\x03\x02\x03\x04", "\x00\x2b\x00\x03\x02\x03\x03"},
		{"TLS 1.3 taken out where 1.2 is spoken too", "\x00\x2b\x00\x05\x04\x03\x04\x03\x03", "\x00\x2b\x00\x05\x04\x03\x03\x03\x03"},
		{"the hybrid group taken out", "\x11\xec", "\x00\x17"},
		{"another suite put first", "\x13\x01\x13\x02", "\x13\x03\x13\x02"},
		{"the application protocol changed", "\x02h2", "\x02h3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, c *mtls.ClientConfig) {
				s.NextProtos, c.NextProtos = []string{"h2"}, []string{"h2"}
				if strings.Contains(tt.name, "too") {
					s.Profile, c.Profile = mtls.Constrained, mtls.Constrained
				}
			})
			changed := make(chan bool, 1)
			p.client.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, network, address)
				return &meddler{Conn: c, old: tt.old, new: tt.new, changed: changed}, err
			}
			if _, err := dial(t, dialer(t, p.client), p.address()); err == nil {
				t.Error("a connection was made")
			}
			if !<-changed {
				t.Error("the proxy found nothing to change: this tests nothing")
			}
		})
	}
}

type meddler struct {
	net.Conn
	old, new string
	changed  chan bool
	once     bool
}

func (m *meddler) Write(b []byte) (int, error) {
	if m.once {
		return m.Conn.Write(b)
	}
	m.once = true
	bent := strings.ReplaceAll(string(b), m.old, m.new)
	m.changed <- bent != string(b)
	_, err := m.Conn.Write([]byte(bent))
	return len(b), err
}

func TestA42AValidSVIDOfAnotherServiceIsRefused(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	foreign := pkitest.New(t, "other.example", nil)
	d.Federate(foreign)
	for _, tt := range []struct {
		name   string
		server *identity.Memory
		want   handshake.Cause
	}{
		{"another service of the trust domain", d.Source("/ns/ml/sa/model-b"), handshake.WrongName},
		{"the same path in a federated domain", foreign.Source(model), handshake.WrongName},
		{"another trust domain that claims the name", pkitest.New(t, "example.org", nil).Source(model), handshake.UnknownCA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			everyone := mtls.AuthorizeFunc(func(context.Context, *mtls.Request) error { return nil })
			server := mtls.ServerConfig{Source: tt.server, Authorize: everyone, Revocation: chaincheck.Off}
			config := mtls.ClientConfig{Source: d.Source(web), Authorize: mtls.AuthorizeID(d.ID(model)), Revocation: chaincheck.Prefer}
			raw, _ := echo(t, server)
			_, err := dial(t, dialer(t, config), raw.Addr().String())
			wantCause(t, err, tt.want, "example")

			address := serve(t, server)
			_, err = get(t, &http.Client{Transport: dialer(t, config).Transport()}, address)
			wantCause(t, err, tt.want)

			host, _, _ := net.SplitHostPort(address)
			config.Authorize = mtls.AuthorizeHosts(map[string][]spiffeid.ID{host: {d.ID(model)}})
			_, err = get(t, &http.Client{Transport: dialer(t, config).Transport()}, address)
			wantCause(t, err, tt.want)
		})
	}
	t.Run("as a client", func(t *testing.T) {
		l, seen := echo(t, mtls.ServerConfig{Source: d.Source(model), Authorize: mtls.AuthorizeID(d.ID(web))})
		_, err := dial(t, dialer(t, mtls.ClientConfig{Source: d.Source("/ns/shop/sa/other"), Authorize: mtls.AuthorizeID(d.ID(model))}), l.Addr().String())
		if err == nil {
			t.Error("accepted")
		}
		seen.says(t, handshake.Unauthorized, "/ns/shop/sa/other")
	})
}

func TestClocksThatAreADayWrongGiveTheRightCause(t *testing.T) {
	ahead := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	for _, tt := range []struct {
		name  string
		clock time.Duration
		want  handshake.Cause
	}{
		{"a day ahead", 25 * time.Hour, handshake.Expired},
		{"a day behind", -24 * time.Hour, handshake.NotYetValid},
		{"five minutes ahead", 5 * time.Minute, ""},
		{"five minutes behind", -5 * time.Minute, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(_ *pkitest.Domain, _ *mtls.ServerConfig, c *mtls.ClientConfig) { c.Now = ahead(tt.clock) })
			_, err := dial(t, dialer(t, p.client), p.address())
			if tt.want == "" && err != nil {
				t.Error(err)
			} else if tt.want != "" {
				here := time.Now().Add(tt.clock).UTC().Format("2006-01-02T15:")
				wantCause(t, err, tt.want, "it is "+here) // the clock that is wrong is named
			}
		})
	}
}

func TestCertificatesThatLiveLongAreRefusedUnlessAllowed(t *testing.T) {
	long := func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(73 * time.Hour) }
	for _, tt := range []struct {
		name  string
		limit time.Duration
		want  handshake.Cause
	}{{"72 hours by default", 0, handshake.Lifetime}, {"allowed", 100 * time.Hour, ""}, {"no limit", -1, ""}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, c *mtls.ClientConfig) {
				s.Source, c.MaxLifetime = d.SourceOf(d.Issue(model, long)), tt.limit
			})
			_, err := dial(t, dialer(t, p.client), p.address())
			if tt.want == "" && err != nil {
				t.Error(err)
			} else if tt.want != "" {
				wantCause(t, err, tt.want, "73h", "MaxLifetime")
			}
		})
	}
}

func TestWhileTheSourceHasNothingHandshakesFailAtOnce(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	var empty identity.Memory
	server, client := d.Source(model), d.Source(web)
	t.Run("the server's", func(t *testing.T) {
		l, seen := echo(t, mtls.ServerConfig{Source: &empty, Authorize: mtls.AuthorizeMemberOf(d.TrustDomain), HandshakeTimeout: time.Minute})
		start := time.Now()
		_, err := dial(t, dialer(t, mtls.ClientConfig{Source: client, Authorize: mtls.AuthorizeID(d.ID(model))}), l.Addr().String())
		wantCause(t, err, handshake.PeerInternal)
		seen.says(t, handshake.NotReady)
		if e := seen.last(); e.Whose != handshake.Own {
			t.Errorf("the server says %v", e)
		} else if _, ok := errors.AsType[*identity.NotReady](error(e)); !ok {
			t.Errorf("no NotReady in %v", e)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("it took %s", took)
		}
	})
	t.Run("the client's, without asking anybody", func(t *testing.T) {
		dd := dialer(t, mtls.ClientConfig{Source: &empty, Authorize: mtls.AuthorizeID(d.ID(model)),
			Dial: func(context.Context, string, string) (net.Conn, error) { panic("dialled") }})
		_, err := dd.DialContext(context.Background(), "tcp", "127.0.0.1:1")
		if _, ok := errors.AsType[*identity.NotReady](err); !ok {
			t.Errorf("got %v", err)
		}
		a, b := net.Pipe()
		defer b.Close()
		_, err = dd.Handshake(context.Background(), a, "model")
		wantCause(t, err, handshake.NotReady)
	})
	t.Run("the client's, with roots and no certificate", func(t *testing.T) {
		_, err := dialer(t, mtls.ClientConfig{Source: identity.NewMemory(d.With(nil)), Authorize: mtls.AuthorizeID(d.ID(model))}).
			DialContext(context.Background(), "tcp", "127.0.0.1:1")
		if err == nil || !strings.Contains(err.Error(), "nothing to present") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("and go well once it came", func(t *testing.T) {
		source := &identity.Memory{}
		l, _ := echo(t, mtls.ServerConfig{Source: source, Authorize: mtls.AuthorizeMemberOf(d.TrustDomain)})
		dd := dialer(t, mtls.ClientConfig{Source: client, Authorize: mtls.AuthorizeID(d.ID(model))})
		if _, err := dial(t, dd, l.Addr().String()); err == nil {
			t.Error("served without an identity")
		}
		s, _, _ := server.Current()
		source.Set(s)
		if _, err := dial(t, dd, l.Addr().String()); err != nil {
			t.Error(err)
		}
	})
}

func TestATrustDomainWithoutCRLsNeedsPrefer(t *testing.T) {
	p := newPair(t, func(d *pkitest.Domain, s *mtls.ServerConfig, c *mtls.ClientConfig) {
		d.PublishNoCRLs()
		s.Revocation = chaincheck.Prefer
	})
	_, err := dial(t, dialer(t, p.client), p.address())
	wantCause(t, err, handshake.RevocationUnknown, "set Revocation to chaincheck.Prefer", "SPIRE")
	p.client.Revocation = chaincheck.Prefer
	if _, err := dial(t, dialer(t, p.client), p.address()); err != nil {
		t.Error(err)
	}
}

func TestWhatWasAgreedOnIsReported(t *testing.T) {
	var mu sync.Mutex
	var seen []mtls.Negotiated
	p := newPair(t, func(_ *pkitest.Domain, s *mtls.ServerConfig, _ *mtls.ClientConfig) {
		s.Hooks = []handshake.Hook{func(_ context.Context, e *handshake.Event) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, mtls.NegotiatedOf(e.State))
		}}
	})
	c, err := dial(t, dialer(t, p.client), p.address())
	if err != nil {
		t.Fatal(err)
	}
	cs := c.(*tls.Conn).ConnectionState()
	got := mtls.NegotiatedOf(&cs)
	if got.Version != "TLS 1.3" || got.Group != "X25519MLKEM768" || !strings.HasPrefix(got.Suite, "TLS_") {
		t.Errorf("agreed on %s", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 1 || seen[0] != got {
		t.Errorf("the server saw %v, the client %v", seen, got)
	}
}
