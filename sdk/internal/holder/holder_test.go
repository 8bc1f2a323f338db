package holder_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/holder"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// world is a Holder whose clock and agent the test is.
type world struct {
	*testing.T
	*holder.Holder
	domain *pkitest.Domain
	now    time.Time
	log    *bytes.Buffer
}

func newWorld(t *testing.T, change func(*holder.Params)) *world {
	w := &world{T: t, now: time.Now().Truncate(time.Second), log: &bytes.Buffer{}}
	w.domain = pkitest.New(t, "example.org", func() time.Time { return w.now })
	p := holder.Params{Name: "the agent", Log: slog.New(slog.NewTextHandler(w.log, nil)), Now: func() time.Time { return w.now }}
	if change != nil {
		change(&p)
	}
	w.Holder = holder.New(p)
	return w
}

// cert lives an hour.
func (w *world) cert(path string) *tls.Certificate {
	return w.domain.Issue(path, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = w.now.Add(-time.Minute), w.now.Add(time.Hour) })
}

func (w *world) answer(certs ...*tls.Certificate) *holder.Answer {
	a := &holder.Answer{Roots: w.domain.Trust().Roots, CRLs: w.domain.CRLs()}
	for _, c := range certs {
		v := &x509svid.SVID{ID: spiffeid.RequireFromURI(c.Leaf.URIs[0]), PrivateKey: c.PrivateKey.(crypto.Signer)}
		for _, der := range c.Certificate {
			parsed, err := x509.ParseCertificate(der)
			if err != nil {
				w.Fatal(err)
			}
			v.Certificates = append(v.Certificates, parsed)
		}
		a.SVIDs = append(a.SVIDs, v)
	}
	return a
}

func (w *world) has(id spiffeid.ID) *identity.Snapshot {
	w.Helper()
	s, _, err := w.Current()
	if err != nil {
		w.Fatalf("no snapshot: %v", err)
	}
	if s.ID != id || s.Certificate == nil || s.Trust == nil {
		w.Fatalf("snapshot of %s, want %s", s.ID, id)
	}
	return s
}

func (w *world) logged(n int, text string) {
	w.Helper()
	if got := strings.Count(w.log.String(), text); got != n {
		w.Errorf("%q is logged %d times, want %d:\n%s", text, got, n, w.log)
	}
}

func TestTheLastCertificateIsServedUntilItEnds(t *testing.T) {
	w := newWorld(t, nil)
	if _, _, err := w.Current(); err == nil || !errors.As(err, new(*identity.NotReady)) {
		t.Fatalf("before the first answer: %v", err)
	}
	w.Became(holder.Unavailable, errors.New("connection refused"))
	if _, _, err := w.Current(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("gone at start: %v does not say why", err)
	}
	cert := w.cert("/a")
	w.Updated(w.answer(cert))
	w.has(w.domain.ID("/a"))
	w.now = w.now.Add(10 * time.Minute)
	away := w.now
	w.Became(holder.Unavailable, errors.New("connection refused"))
	for range 48 {
		w.Became(holder.Unavailable, errors.New("connection refused"))
		if next := w.Check(); next <= 0 || next > time.Minute {
			t.Fatalf("the next check is in %s", next)
		}
		w.has(w.domain.ID("/a"))
		w.now = w.now.Add(time.Minute)
	}
	w.now = cert.Leaf.NotAfter.Add(-time.Second)
	if next := w.Check(); next != time.Second {
		t.Errorf("a second before its end the next check is in %s", next)
	}
	_, changed, _ := w.Current()
	w.now = cert.Leaf.NotAfter
	w.Check()
	select {
	case <-changed:
	default:
		t.Error("whoever waits is not woken by the end")
	}
	_, _, err := w.Current()
	var ended *identity.Ended
	if !errors.As(err, &ended) || !ended.Since.Equal(away) || ended.ID != w.domain.ID("/a") {
		t.Fatalf("after the end: %v", err)
	}
	for _, want := range []string{away.UTC().Format(time.RFC3339), "connection refused", "spiffe://example.org/a", "the agent"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	w.Check()
	w.logged(2, "has nothing for us") // at start, and later
	w.logged(1, "no valid certificate any more")
	w.Updated(w.answer(w.cert("/a")))
	w.has(w.domain.ID("/a"))
}

func TestAnAgentThatAnswersAndDoesNotRenewIsNamed(t *testing.T) {
	w := newWorld(t, nil)
	cert := w.cert("/a")
	w.Updated(w.answer(cert))
	w.now = cert.Leaf.NotAfter
	w.Check()
	for range 3 { // it goes on giving what has ended
		if _, _, err := w.Current(); err == nil || !strings.Contains(err.Error(), "has no newer one") {
			t.Errorf("%v", err)
		}
		w.Updated(w.answer(cert))
	}
	w.Check()
	w.logged(1, "no valid certificate any more")
}

func TestAClockThatIsWrongByADayIsServedWithAWarning(t *testing.T) {
	for name, by := range map[string]time.Duration{"ahead": 24 * time.Hour, "behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			cert := w.cert("/a") // by the agent's clock
			w.now = w.now.Add(by)
			w.Updated(w.answer(cert))
			w.Check()
			w.has(w.domain.ID("/a"))
			w.logged(1, "clock seems to be "+name)
			if got := w.Status().Clock; got != name {
				t.Errorf("the status says %q", got)
			}
			// Its whole life, counted from when it came, and no longer.
			w.now = w.now.Add(59 * time.Minute)
			w.Check()
			w.has(w.domain.ID("/a"))
			w.logged(1, "clock seems to be")
			if by > 0 {
				w.now = w.now.Add(2 * time.Minute)
				w.Check()
				if _, _, err := w.Current(); err == nil {
					t.Error("it is served for ever")
				}
			}
		})
	}
}

func TestAClockThatIsSetRightIsSaid(t *testing.T) {
	w := newWorld(t, nil)
	cert := w.cert("/a")
	right := w.now
	w.now = right.Add(-24 * time.Hour)
	w.Updated(w.answer(cert))
	w.now = right
	w.Check()
	w.logged(1, "agrees with the certificate again")
	w.has(w.domain.ID("/a"))
}

func TestWhatDidNotChangeKeepsItsPointers(t *testing.T) {
	w := newWorld(t, nil)
	cert := w.cert("/a")
	w.Updated(w.answer(cert))
	first := w.has(w.domain.ID("/a"))
	w.Updated(w.answer(cert))
	if w.has(w.domain.ID("/a")) != first {
		t.Error("an equal answer made another snapshot")
	}
	w.Updated(w.answer(w.cert("/a")))
	if second := w.has(w.domain.ID("/a")); second == first || second.Trust != first.Trust {
		t.Error("a renewed certificate made other trust")
	}
	w.domain.Revoke(cert.Leaf)
	w.Updated(w.answer(cert))
	third := w.has(w.domain.ID("/a"))
	if third.Trust == first.Trust || third.Trust.CRLs == first.Trust.CRLs {
		t.Error("a new list is not taken")
	}
	domain := w.domain.TrustDomain
	if &third.Trust.Roots[domain][0] != &first.Trust.Roots[domain][0] {
		t.Error("roots that did not change were replaced")
	}
	w.domain.RotateRoot(false)
	w.Updated(w.answer(cert))
	if n := len(w.has(w.domain.ID("/a")).Trust.Roots[domain]); n != 2 {
		t.Errorf("%d roots after a rotation, want 2", n)
	}
}

func TestAListThatCannotBeReadLeavesTheLastOne(t *testing.T) {
	w := newWorld(t, nil)
	cert := w.cert("/a")
	victim := w.cert("/victim")
	w.domain.Revoke(victim.Leaf)
	w.Updated(w.answer(cert))
	bad := w.answer(cert)
	bad.CRLs = [][]byte{[]byte("junk"), []byte("more")}
	for range 3 {
		w.Updated(bad)
	}
	if w.Status().Malformed == 0 {
		t.Error("it is not counted")
	}
	if err := judge(w, victim); !errors.Is(err, &chaincheck.Error{Cause: chaincheck.Revoked}) {
		t.Errorf("what was revoked before is judged: %v", err)
	}
	if err := judge(w, cert); err != nil {
		t.Errorf("what was good before is judged: %v", err)
	}
}

// judge verifies a peer with the current trust.
func judge(w *world, peer *tls.Certificate) error {
	w.Helper()
	s, _, err := w.Current()
	if err != nil {
		w.Fatal(err)
	}
	v := chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: chaincheck.Server, Now: func() time.Time { return w.now }})
	var chain []*x509.Certificate
	for _, der := range peer.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			w.Fatal(err)
		}
		chain = append(chain, c)
	}
	_, err = v.Verify(w.Context(), s.Trust, chain, nil)
	return err
}

func TestDenialsAreJoined(t *testing.T) {
	w := newWorld(t, nil)
	cert, peer, other := w.cert("/a"), w.cert("/peer"), w.cert("/other")
	w.Updated(w.answer(cert))
	w.Denied([]holder.Revocation{
		{SPIFFEID: "spiffe://example.org/peer", Reason: "demo", At: w.now},
		{Serials: []string{"00" + strings.ToUpper(other.Leaf.SerialNumber.Text(16))}},
		{SPIFFEID: "not an ID"}, {Serials: []string{"no serial"}},
	})
	for name, c := range map[string]*tls.Certificate{"by identity": peer, "by serial": other} {
		if err := judge(w, c); !errors.Is(err, &chaincheck.Error{Cause: chaincheck.Revoked}) {
			t.Errorf("denied %s: %v", name, err)
		}
	}
	if err := judge(w, cert); err != nil {
		t.Errorf("whom nobody denied: %v", err)
	}
	if w.Status().Malformed == 0 {
		t.Error("what cannot be read is not counted")
	}
	w.Updated(w.answer(cert)) // keeps them
	if err := judge(w, peer); err == nil {
		t.Error("the next answer acquits")
	}
	w.NotOffered()
	if err := judge(w, peer); err == nil {
		t.Error("a service that goes away acquits")
	}
	w.Denied(nil)
	if err := judge(w, peer); err != nil {
		t.Errorf("after the lift: %v", err)
	}
}

func TestTheFirstSnapshotHasTheDenials(t *testing.T) {
	for name, decide := range map[string]func(*world){
		"when they come": func(w *world) { w.Denied(nil) },
		"when the socket offers none": func(w *world) {
			w.NotOffered()
		},
		"when they do not come in time": func(w *world) {
			if next := w.Check(); next != time.Second {
				w.Errorf("the next check is in %s", next)
			}
			w.now = w.now.Add(time.Second)
			w.Check()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(p *holder.Params) { p.AwaitDenials = time.Second })
			w.Updated(w.answer(w.cert("/a")))
			if _, _, err := w.Current(); err == nil {
				t.Fatal("a snapshot without denials was served")
			}
			decide(w)
			w.has(w.domain.ID("/a"))
		})
	}
}

func TestTheIdentityIsChosen(t *testing.T) {
	b := spiffeid.RequireFromString("spiffe://example.org/b")
	for name, change := range map[string]func(*holder.Params){
		"by its ID": func(p *holder.Params) { p.ID = b },
		"by the program": func(p *holder.Params) {
			p.Pick = func(all []*x509svid.SVID) *x509svid.SVID {
				for _, v := range all {
					if v.ID == b {
						return v
					}
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, change)
			w.Updated(w.answer(w.cert("/a")))
			if _, _, err := w.Current(); err == nil || !strings.Contains(err.Error(), "spiffe://example.org/a") || w.Status().State != holder.NoIdentity {
				t.Fatalf("state %s, error %v; want no identity, and which there are", w.Status().State, err)
			}
			w.Updated(w.answer(w.cert("/a"), w.cert("/b")))
			first := w.has(b)
			// Taken away again: kept until it ends, while whom to believe moves on.
			w.domain.RotateRoot(false)
			w.Updated(w.answer(w.cert("/a")))
			if s := w.has(b); s.Certificate != first.Certificate || s.Trust == first.Trust || w.Status().State != holder.NoIdentity {
				t.Error("the certificate is not kept with the newer trust")
			}
		})
	}
}

// TestWhoIsCalledMayAskBack: a handler of logs that adds how the identity
// stands, and a Pick that looks at it.
func TestWhoIsCalledMayAskBack(t *testing.T) {
	var w *world
	asked := 0
	w = newWorld(t, func(p *holder.Params) {
		p.Pick = func(all []*x509svid.SVID) *x509svid.SVID {
			asked++
			w.Status()
			return all[0]
		}
		p.Log = slog.New(asks{p.Log.Handler(), func() { asked++; w.Status() }})
	})
	cert := w.cert("/a")
	w.Became(holder.Unavailable, errors.New("connection refused"))
	w.Updated(w.answer(cert))
	w.Denied([]holder.Revocation{{SPIFFEID: "not an ID"}})
	w.NotOffered()
	w.Dropped("jwt", errors.New("junk"))
	w.now = cert.Leaf.NotAfter
	w.Check()
	if asked != 7 {
		t.Errorf("asked %d times:\n%s", asked, w.log)
	}
}

type asks struct {
	slog.Handler
	back func()
}

func (a asks) Handle(ctx context.Context, r slog.Record) error {
	a.back()
	return a.Handler.Handle(ctx, r)
}

func TestManyRevocationsThatMakeNoSenseAreToldInFewLines(t *testing.T) {
	w := newWorld(t, nil)
	w.Denied(make([]holder.Revocation, 10))
	w.logged(0, "makes no sense")
	all := []holder.Revocation{{SPIFFEID: "spiffe://example.org/a"}}
	for range 1000 {
		all = append(all, holder.Revocation{SPIFFEID: "no ID", Serials: []string{"no serial"}})
	}
	w.Denied(all)
	w.logged(18, "makes no sense") // 16 and how many more, and what NewDenySet says
	if n := w.Status().Denials; n != 1 {
		t.Errorf("%d denials", n)
	}
}
