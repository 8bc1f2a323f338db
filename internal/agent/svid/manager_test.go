package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"
)

var web = []workload.Selector{"unix:uid:1"}

func TestAFirstCallerGetsAnSVIDAndAWarmOneCostsNoCall(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		u := w.next(s)
		if len(u.SVIDs) != 1 || u.SVIDs[0].ID.String() != "spiffe://example.org/ns/default/sa/web" || u.SVIDs[0].Instance != "uid/1" {
			t.Fatalf("got %v", ids(u))
		}
		v := u.SVIDs[0]
		key, err := x509.ParsePKCS8PrivateKey(v.KeyPKCS8)
		if err != nil || !v.Key.(*ecdsa.PrivateKey).Equal(key) {
			t.Errorf("KeyPKCS8 is not Key: %v", err)
		}
		if len(u.Trust.Roots["example.org"]) != 1 {
			t.Error("no roots in the Update")
		}
		w.set(func() { w.down = true })
		warm := m.Subscribe(web, "uid/1")
		defer warm.Close()
		if got := w.next(warm).SVIDs[0]; got != v {
			t.Error("a second caller of the instance got another key")
		}
		if got := w.calls(); !slices.Equal(got, []int{1}) {
			t.Errorf("calls %v", got)
		}
		if testutil.ToFloat64(m.metrics.hits) != 1 || testutil.ToFloat64(m.metrics.misses) != 1 {
			t.Error("hit and miss were not counted")
		}
	})
}

func TestEachInstanceHasItsOwnKey(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		a, b := m.Subscribe(web, "session/a"), m.Subscribe(web, "session/b")
		defer a.Close()
		defer b.Close()
		if x, y := w.next(a).SVIDs[0], w.next(b).SVIDs[0]; x.Serial == y.Serial || x.ID != y.ID {
			t.Errorf("%s and %s", x.Serial, y.Serial)
		}
	})
}

func TestACallerWithoutAnEntryIsHeldAndThenToldWhy(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(&nodev1.Entry{Name: "default/api", SpiffeId: "spiffe://example.org/api", Selectors: []string{"unix:path:/api", "unix:uid:1"}})
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		begun := time.Now()
		_, err := s.Next(context.Background())
		if !fault.Is(err, fault.Denied) || time.Since(begun) != 2*time.Second {
			t.Fatalf("%v after %v", err, time.Since(begun))
		}
		if !strings.Contains(err.Error(), "default/api") || !strings.Contains(err.Error(), "unix:path:/api") {
			t.Errorf("does not say which entry comes near: %v", err)
		}
		t.Run("what is known elsewhere is told when nothing here comes near", func(t *testing.T) {
			other := m.Subscribe([]workload.Selector{"unix:gid:9"}, "uid/9")
			defer other.Close()
			if _, err := other.Next(context.Background()); !strings.Contains(err.Error(), "node-2") {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestAnEntryDeclaredWhileACallerIsHeldServesIt(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		go func() {
			time.Sleep(1500 * time.Millisecond)
			w.view.Store(func() *upstream.View {
				v := *w.view.Get()
				v.Entries = map[string]*nodev1.Entry{"default/web": entry("web", "unix:uid:1")}
				return &v
			}())
		}()
		begun := time.Now()
		u, err := s.Next(context.Background())
		if err != nil || len(u.SVIDs) != 1 || time.Since(begun) != 1500*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

func TestBeforeTheEntriesAreKnownNobodyIsDenied(t *testing.T) {
	inBubble(t, func(w *world) {
		w.change(func(v *upstream.View) { v.Synced, v.Connected = false, false })
		m := w.run(Params{})
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		if _, err := s.Next(context.Background()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("got %v", err)
		}
		if _, err := m.WaitMatch(context.Background(), web); !fault.Is(err, fault.Unavailable) {
			t.Errorf("WaitMatch: %v", err)
		}
	})
}

func TestSeveralIdentitiesComeTogetherSortedByEntry(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("b", "unix:uid:1"), entry("a", "unix:uid:1"))
		w.set(func() { w.delay = 100 * time.Millisecond })
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		u := w.next(s)
		if len(u.SVIDs) != 2 || u.SVIDs[0].ID.Path() != "/ns/default/sa/a" {
			t.Errorf("got %v", ids(u))
		}
		t.Run("one that is refused holds back nothing and is named", func(t *testing.T) {
			w.set(func() { w.refuse["default/c"] = &nodev1.Refusal{Kind: "denied", Message: "not yours"} })
			w.declare(entry("c", "unix:uid:1"))
			other := m.Subscribe(web, "uid/2")
			defer other.Close()
			u := w.next(other)
			if len(u.SVIDs) != 2 || !strings.Contains(u.Pending["default/c"].Error(), "not yours") {
				t.Errorf("got %v, pending %v", ids(u), u.Pending)
			}
		})
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		first := w.next(s).SVIDs[0]
		w.quiet(s, 10*time.Hour)
		begun := time.Now()
		u, err := s.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begun); waited > 4*time.Hour || u.SVIDs[0].Serial == first.Serial {
			t.Errorf("renewed after 10 h + %v", waited)
		}
		if slices.Equal(u.SVIDs[0].KeyPKCS8, first.KeyPKCS8) {
			t.Error("the key was kept")
		}
	})
}

func TestAnUnusedIdentityIsRenewedOnceAndThenLeftToExpire(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		w.next(s)
		s.Close()
		time.Sleep(20 * time.Hour)
		if n := len(w.calls()); n != 2 {
			t.Errorf("%d calls after 20 h, want 2", n)
		}
		time.Sleep(40 * time.Hour)
		if n := len(w.calls()); n != 2 || len(m.Identities()) != 0 {
			t.Errorf("%d calls after 60 h, %d held", n, len(m.Identities()))
		}
	})
}

func TestWithoutAControlPlaneServiceGoesOnUntilExpiry(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		first := w.next(s).SVIDs[0]
		w.set(func() { w.down = true })
		w.quiet(s, 23*time.Hour)
		warm := m.Subscribe(web, "uid/1")
		if w.next(warm).SVIDs[0].Serial != first.Serial {
			t.Error("another SVID from nowhere")
		}
		warm.Close()
		w.quiet(s, 2*time.Hour) // it expired
		cold := m.Subscribe(web, "uid/1")
		defer cold.Close()
		if u, err := cold.Next(context.Background()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("after expiry: %v, %v", u, err)
		} else if !strings.Contains(err.Error(), "no replica answers") {
			t.Errorf("does not say why: %v", err)
		}
		if n := len(w.calls()); n > 3000 {
			t.Errorf("%d calls in 13 h without an answer", n)
		}
		w.set(func() { w.down = false })
		w.change(func(v *upstream.View) { v.Connected = false })
		w.change(func(v *upstream.View) { v.Connected = true })
		if w.next(s).SVIDs[0].Serial == first.Serial {
			t.Error("not renewed when the link came back")
		}
	})
}

func TestWallClockJumps(t *testing.T) {
	tests := []struct {
		name string
		ttl  time.Duration
		jump time.Duration
		// serves: the old SVID is good by the new wall time.
		serves bool
	}{
		{"an hour forward within the life", 24 * time.Hour, time.Hour, true},
		{"an hour forward beyond half of the life renews", 90 * time.Minute, time.Hour, true},
		{"an hour forward beyond the end", 50 * time.Minute, time.Hour, false},
		{"an hour back does not delay renewal", 90 * time.Minute, -time.Hour, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.ttl = test.ttl
				m := w.run(Params{})
				w.declare(entry("web", "unix:uid:1"))
				s := m.Subscribe(web, "uid/1")
				defer s.Close()
				first := w.next(s).SVIDs[0]
				w.clock.Jump(test.jump)
				warm := m.Subscribe(web, "uid/1")
				defer warm.Close()
				if test.serves {
					w.next(warm)
				} else {
					w.quiet(warm, time.Second)
				}
				ctx, cancel := context.WithTimeout(context.Background(), test.ttl*3/5+recheck)
				defer cancel()
				u, err := s.Next(ctx)
				if test.serves && test.ttl < 2*time.Hour && (err != nil || u.SVIDs[0].Serial == first.Serial) {
					t.Errorf("not renewed within its true half life: %v", err)
				}
				if !test.serves && err == nil {
					t.Errorf("an SVID that is over by this machine's clock was served: %v", ids(u))
				}
			})
		})
	}
}

func TestAHerdIsSignedInBatches(t *testing.T) {
	inBubble(t, func(w *world) {
		w.set(func() { w.delay = 50 * time.Millisecond })
		m := w.run(Params{CacheSize: 100})
		w.declare(entry("web", "unix:uid:1"))
		const herd = 1000
		done := make(chan error, herd)
		for i := range herd {
			go func() {
				s := m.Subscribe(web, Instance("session/"+string(rune('a'+i%26))+strings.Repeat("x", i/26)))
				defer s.Close()
				_, err := s.Next(context.Background())
				done <- err
			}()
		}
		for range herd {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		total := 0
		for _, n := range w.calls() {
			total += n
		}
		if n := len(w.calls()); n > 8 || total != herd {
			t.Errorf("%d certificates in %d calls: %v", total, n, w.calls())
		}
		synctest.Wait()
		if n := len(m.Identities()); n > 100 {
			t.Errorf("%d are held after the herd left", n)
		}
	})
}

func TestTheCacheNeverEvictsWhatIsInUse(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{CacheSize: 2})
		w.declare(entry("web", "unix:uid:1"))
		var used []*Subscription
		for _, i := range []Instance{"a", "b", "c", "d"} {
			s := m.Subscribe(web, i)
			w.next(s)
			used = append(used, s)
		}
		if n := len(m.Identities()); n != 4 {
			t.Errorf("%d held, 4 in use", n)
		}
		for _, s := range used {
			s.Close()
		}
		var left []string
		for _, i := range m.Identities() {
			left = append(left, i.Instance)
		}
		if !slices.Equal(left, []string{"c", "d"}) {
			t.Errorf("left are %v, want the two used last", left)
		}
		m.Forget("c")
		if len(m.Identities()) != 1 {
			t.Error("a forgotten instance is still held")
		}
	})
}

func TestChangesOfAnEntry(t *testing.T) {
	change := func(f func(*nodev1.Entry)) *nodev1.Entry {
		e := proto.Clone(entry("web", "unix:uid:1")).(*nodev1.Entry)
		f(e)
		return e
	}
	tests := []struct {
		name    string
		entry   *nodev1.Entry // nil: removed
		resigns bool
		denied  bool
	}{
		{"new DNS names are signed at once", change(func(e *nodev1.Entry) { e.DnsNames = []string{"web.example.org"} }), true, false},
		{"a new lifetime is signed at once", change(func(e *nodev1.Entry) { e.X509TtlSeconds = 60 }), true, false},
		{"another SPIFFE ID is another certificate", change(func(e *nodev1.Entry) { e.SpiffeId += "2" }), true, false},
		{"a hint changes what is served, not the certificate", change(func(e *nodev1.Entry) { e.Hint = "internal" }), false, false},
		{"a removed entry ends it", nil, false, true},
		{"selectors that match no longer end it", entry("web", "unix:uid:2"), false, true},
		{"a blocked identity ends it", change(func(e *nodev1.Entry) { e.Blocked = true }), false, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				m := w.run(Params{})
				w.declare(entry("web", "unix:uid:1"))
				s := m.Subscribe(web, "uid/1")
				defer s.Close()
				first := w.next(s).SVIDs[0]
				w.change(func(v *upstream.View) {
					delete(v.Entries, "default/web")
					if test.entry != nil {
						v.Entries["default/web"] = test.entry
					}
				})
				begun := time.Now()
				u, err := s.Next(context.Background())
				if time.Since(begun) > time.Second {
					t.Errorf("took %v", time.Since(begun))
				}
				if test.denied {
					if !fault.Is(err, fault.Denied) {
						t.Errorf("got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; test.resigns && u.SVIDs[0].Serial == first.Serial && i < 3; i++ {
					u = w.next(s) // the old one under the changed entry came first
				}
				if got := u.SVIDs[0]; got.Serial == first.Serial == test.resigns || got.ID.String() != test.entry.SpiffeId || got.Entry != test.entry {
					t.Errorf("serial %s after %s, id %s", got.Serial, first.Serial, got.ID)
				}
			})
		})
	}
}

func TestTheSameEntrySentAgainWakesNobody(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		w.next(s)
		w.declare(entry("web", "unix:uid:1")) // as after a reconnect
		w.change(func(v *upstream.View) {
			v.Heartbeats = map[string]*nodev1.Heartbeat{"default": {CrlNumber: 3}}
		})
		w.quiet(s, time.Minute)
	})
}

func TestAChangedAddressOfTheMachineIsSignedAtOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		ip := "192.0.2.1"
		m := w.run(Params{OwnIPs: func() []netip.Addr {
			w.mu.Lock()
			defer w.mu.Unlock()
			return addrs(ip)()
		}})
		e := entry("web", "unix:uid:1")
		e.IncludeOwnIp = true
		w.declare(e)
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		leaf := func(u *Update) string {
			c, err := x509.ParseCertificate(u.SVIDs[0].Chain[0])
			if err != nil || len(c.IPAddresses) != 1 {
				t.Fatalf("%v %v", c, err)
			}
			return c.IPAddresses[0].String()
		}
		if got := leaf(w.next(s)); got != "192.0.2.1" {
			t.Errorf("got %s", got)
		}
		w.set(func() { ip = "192.0.2.2" })
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
		defer cancel()
		u, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got := leaf(u); got != "192.0.2.2" {
			t.Errorf("got %s", got)
		}
	})
}

func TestARevokedSerialGetsANewKeyAtOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		first := w.next(s).SVIDs[0]
		revoke := func(v *upstream.View) {
			v.Revocations["r1"] = &nodev1.Revocation{Id: "r1", Serials: []string{first.Serial}}
		}
		w.change(revoke)
		u := w.next(s)
		if u.SVIDs[0].Serial == first.Serial || slices.Equal(u.SVIDs[0].KeyPKCS8, first.KeyPKCS8) {
			t.Error("the revoked certificate or its key is still served")
		}
		if n := len(w.calls()); n != 2 {
			t.Errorf("%d calls", n)
		}
	})
	t.Run("a new caller never gets the revoked one, even without a control plane", func(t *testing.T) {
		inBubble(t, func(w *world) {
			m := w.run(Params{})
			w.declare(entry("web", "unix:uid:1"))
			s := m.Subscribe(web, "uid/1")
			defer s.Close()
			first := w.next(s).SVIDs[0]
			w.set(func() { w.down = true })
			w.change(func(v *upstream.View) {
				v.Revocations["r1"] = &nodev1.Revocation{Id: "r1", Serials: []string{first.Serial}}
			})
			other := m.Subscribe(web, "uid/1")
			defer other.Close()
			w.quiet(other, 5*time.Second)
			w.set(func() { w.down = false })
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if u, err := other.Next(ctx); err != nil || u.SVIDs[0].Serial == first.Serial {
				t.Errorf("%v", err)
			}
		})
	})
	t.Run("one that was revoked on its way is not served", func(t *testing.T) {
		inBubble(t, func(w *world) {
			m := w.run(Params{})
			w.change(func(v *upstream.View) {
				v.Entries["default/web"] = entry("web", "unix:uid:1")
				v.Revocations["r1"] = &nodev1.Revocation{Id: "r1", Serials: []string{"101"}}
			})
			s := m.Subscribe(web, "uid/1")
			defer s.Close()
			if got := w.next(s).SVIDs[0].Serial; got != "102" {
				t.Errorf("served %s", got)
			}
		})
	})
	t.Run("a lifted block is signed at once", func(t *testing.T) {
		inBubble(t, func(w *world) {
			m := w.run(Params{})
			e := entry("web", "unix:uid:1")
			e.Blocked = true
			w.declare(e)
			s := m.Subscribe(web, "uid/1")
			defer s.Close()
			begun := time.Now()
			if _, err := s.Next(context.Background()); !fault.Is(err, fault.Denied) || time.Since(begun) != 0 {
				t.Errorf("%v after %v", err, time.Since(begun))
			}
			w.declare(entry("web", "unix:uid:1"))
			w.next(s)
		})
	})
}

func TestARefusalIsToldAfterTheHoldOffAndRetried(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		w.set(func() {
			w.refuse["default/web"] = &nodev1.Refusal{Kind: "not_found", Message: "no entry default/web here yet"}
		})
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		if _, err := s.Next(context.Background()); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "here yet") {
			t.Errorf("got %v", err)
		}
		w.set(func() { delete(w.refuse, "default/web") })
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// The next try is up to its back-off, which may be longer than one
		// caller is held.
		for {
			_, err := s.Next(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Errorf("not tried again: %v", err)
				break
			}
		}
	})
}

func TestWhatASignerAnswersIsChecked(t *testing.T) {
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tests := map[string]func(*x509.Certificate){
		"another key":              func(c *x509.Certificate) { c.PublicKey = &other.PublicKey },
		"another identity":         func(c *x509.Certificate) { c.URIs[0].Path = "/ns/default/sa/admin" },
		"no identity":              func(c *x509.Certificate) { c.URIs = nil },
		"a certificate that ended": func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(time.Minute) },
	}
	for name, mangle := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				m := w.run(Params{})
				w.set(func() { w.mangle = mangle })
				w.declare(entry("web", "unix:uid:1"))
				s := m.Subscribe(web, "uid/1")
				defer s.Close()
				w.quiet(s, 5*time.Second)
			})
		})
	}
}

func TestTrustWakesSubscribersAndWatchers(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		first := w.next(s)
		_, changed := m.Trust()
		w.change(func(v *upstream.View) {
			v.CRLs = map[string]*nodev1.CRL{"default": {Authority: "default", Number: 7, Lists: [][]byte{{1}, {2}}}}
		})
		<-changed
		u := w.next(s)
		if u.SVIDs[0] != first.SVIDs[0] || u.Trust.CRLNumber["default"] != 7 || len(u.Trust.CRLs["example.org"]) != 2 {
			t.Errorf("%v %+v", ids(u), u.Trust)
		}
	})
}

func TestBeforeTheRootsAreKnownNoSVIDIsHandedOut(t *testing.T) {
	inBubble(t, func(w *world) {
		bundles := w.view.Get().Bundles
		w.change(func(v *upstream.View) {
			v.Synced, v.Bundles = false, nil
			v.Entries["default/web"] = entry("web", "unix:uid:1")
		})
		m := w.run(Params{})
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		w.quiet(s, time.Second)
		w.change(func(v *upstream.View) { v.Bundles = bundles })
		if u := w.next(s); len(u.Trust.Roots["example.org"]) != 1 {
			t.Error("no roots")
		}
	})
}

func TestWantFollowsTheEntries(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		if m.Want() != (workload.Want{}) {
			t.Error("something is wanted by nobody")
		}
		w.declare(entry("a", "unix:sha256:00"), entry("b", "unix:group:wheel"))
		if m.Want() != (workload.Want{SHA256: true, Names: true}) {
			t.Errorf("%+v", m.Want())
		}
	})
}

func TestMetricsAreWellFormed(t *testing.T) {
	inBubble(t, func(w *world) {
		r := prometheus.NewPedanticRegistry()
		m := w.run(Params{Registerer: r})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		w.next(s)
		if n, err := testutil.GatherAndCount(r, "legation_svid_expiry_timestamp_seconds", "legation_svids_held"); err != nil || n != 2 {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestItKnowsWhetherACertificateWasAskedForAndWhyThereIsNone(t *testing.T) {
	inBubble(t, func(w *world) {
		m := w.run(Params{})
		w.declare(entry("web", "unix:uid:1"))
		is := func(when string, wantAsked, wantFailed bool) {
			t.Helper()
			synctest.Wait()
			if asked, failed := m.Asked("default/web"); asked != wantAsked || (failed != nil) != wantFailed {
				t.Errorf("%s: asked %t, failed %v", when, asked, failed)
			}
		}
		is("before anybody asks", false, false)
		w.set(func() { w.down = true })
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		is("while nobody signs", true, true)
		w.set(func() { w.down = false })
		w.next(s)
		is("once it is there", true, false)
	})
}
