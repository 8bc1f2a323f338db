package chaincheck

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// clock is wall time as a test sets it.
type clock struct{ now atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	c.set(now)
	return c
}

func (c *clock) set(t time.Time)      { c.now.Store(&t) }
func (c *clock) move(d time.Duration) { c.set(c.Now().Add(d)) }
func (c *clock) Now() time.Time       { return *c.now.Load() }

// judged is a verifier with its clock, and a world's trust.
func judged(t testing.TB, w *world, bend func(*VerifierConfig)) (*Verifier, *clock, *Trust) {
	t.Helper()
	c := newClock()
	config := VerifierConfig{Usage: Client, Now: c.Now}
	if bend != nil {
		bend(&config)
	}
	return NewVerifier(config), c, &Trust{Roots: w.params.Roots, CRLs: w.params.CRLs}
}

// TestA25ARememberedVerdictDies with everything that it rests on.
func TestA25ARememberedVerdictDies(t *testing.T) {
	type scene struct {
		*world
		v     *Verifier
		clock *clock
		trust *Trust
		chain []*x509.Certificate
		ocsp  *responders
	}
	id := spiffeid.RequireFromString(workload)
	for _, tt := range []struct {
		name   string
		bend   func(*VerifierConfig)
		change func(t *testing.T, s *scene)
		want   Cause // empty: accepted
		hit    bool  // from memory
	}{
		{"nothing changes", nil, func(*testing.T, *scene) {}, "", true},
		{"time passes", nil, func(_ *testing.T, s *scene) { s.clock.move(30 * time.Minute) }, "", true},
		{"the same bytes, parsed again", nil, func(t *testing.T, s *scene) {
			for i, c := range s.chain {
				again, err := x509.ParseCertificate(c.Raw)
				if err != nil {
					t.Fatal(err)
				}
				s.chain[i] = again
			}
		}, "", true},
		{"an equal trust, made again", nil, func(_ *testing.T, s *scene) { c := *s.trust; s.trust = &c }, "", false},
		{"other roots", nil, func(t *testing.T, s *scene) {
			s.trust = &Trust{Roots: Roots{domain: {ca(t, "root", nil, nil).cert}}, CRLs: s.trust.CRLs}
		}, UnknownCA, false},
		{"a list that revokes it", nil, func(t *testing.T, s *scene) {
			s.trust = &Trust{Roots: s.trust.Roots, CRLs: crls(t, s.root.crl(t, 1, nil), s.issuing.crl(t, 2, nil, s.leaf))}
		}, Revoked, false},
		{"it is denied", nil, func(t *testing.T, s *scene) {
			s.trust = &Trust{Roots: s.trust.Roots, CRLs: s.trust.CRLs, Denied: denials(t, Denial{ID: id})}
		}, Revoked, false},
		{"the lists end", nil, func(_ *testing.T, s *scene) { s.clock.move(time.Hour + time.Second) }, RevocationUnknown, false},
		{"the leaf ends", func(c *VerifierConfig) { c.Revocation = Off }, func(_ *testing.T, s *scene) { s.clock.set(s.leaf.NotAfter.Add(time.Second)) }, Expired, false},
		{"the last second of the leaf", func(c *VerifierConfig) { c.Revocation = Off }, func(_ *testing.T, s *scene) { s.clock.set(s.leaf.NotAfter.Add(999 * time.Millisecond)) }, "", true},
		{"the CA ends", func(c *VerifierConfig) { c.Revocation = Off }, func(_ *testing.T, s *scene) { s.clock.set(s.issuing.cert.NotAfter.Add(time.Second)) }, Expired, false},
		{"the clock is set back a little", nil, func(_ *testing.T, s *scene) { s.clock.move(-time.Minute) }, "", false},
		{"the clock is set back to before it began", nil, func(_ *testing.T, s *scene) { s.clock.move(-time.Hour) }, NotYetValid, false},
		{"another chain of the same leaf", nil, func(_ *testing.T, s *scene) { s.chain = s.chain[:1] }, UnknownCA, false},
		{"another chain of the same leaf that holds", nil, func(_ *testing.T, s *scene) { s.chain = append(slices.Clone(s.chain), s.root.cert) }, "", false},
		{"other bytes after the same signature", nil, func(t *testing.T, s *scene) {
			forged := *s.leaf
			forged.Raw = slices.Clone(s.leaf.Raw)
			forged.Raw[40] ^= 1
			forged.RawTBSCertificate = forged.Raw[4:]
			s.chain = append([]*x509.Certificate{&forged}, s.chain[1:]...)
		}, BadSignature, false},
		{"a fetched answer turns bad", nil, func(t *testing.T, s *scene) {
			// Another verification learns of it; the lists say nothing.
			s.ocsp.set(says(t, s.issuing.answer(s.leaf, func(r *reply) { r.status = StatusRevoked })))
			p := s.params
			p.CRLs, p.OCSP, p.Now = crls(t, s.root.crl(t, 1, nil)), s.v.config.OCSP, s.clock.Now()
			wantCause(t, p, Revoked)
		}, Revoked, false},
		{"policy says that its life is too long: another verifier, another memory", nil, func(_ *testing.T, s *scene) {
			s.v = NewVerifier(VerifierConfig{Usage: Client, Now: s.clock.Now, MaxLifetime: time.Hour})
		}, Lifetime, false},
		{"nothing is remembered where that was asked for", func(c *VerifierConfig) { c.CacheSize = -1 }, func(*testing.T, *scene) {}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.present(w.issuing.leaf(t, withURL))
			fetcher := &responders{}
			v, c, trust := judged(t, w, func(config *VerifierConfig) {
				config.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
				if tt.bend != nil {
					tt.bend(config)
				}
			})
			s := &scene{w, v, c, trust, slices.Clone(w.params.Chain), fetcher}
			if _, err := s.v.Verify(t.Context(), s.trust, s.chain, nil); err != nil {
				t.Fatal(err)
			}
			tt.change(t, s)
			before := s.v.Stats().Hits
			result, err := s.v.Verify(t.Context(), s.trust, s.chain, nil)
			holdsCause(t, result, err, tt.want)
			if hit := s.v.Stats().Hits > before; hit != tt.hit {
				t.Errorf("from memory: %v, want %v", hit, tt.hit)
			}
		})
	}
}

// TestA25ADeadVerdictStaysDead when the clock is set back after its end.
func TestA25ADeadVerdictStaysDead(t *testing.T) {
	w := newWorld(t)
	v, c, trust := judged(t, w, nil)
	verify := func(want Cause) {
		t.Helper()
		r, err := v.Verify(t.Context(), trust, w.params.Chain, nil)
		holdsCause(t, r, err, want)
	}
	verify("")
	c.move(2 * time.Hour) // beyond the lists
	verify(RevocationUnknown)
	c.set(now.Add(time.Second))
	verify("")
	if s := v.Stats(); s.Hits != 0 || s.Misses != 3 {
		t.Errorf("%+v: a verdict came back to life", s)
	}
}

// TestTheStapleIsPartOfTheQuestion.
func TestTheStapleIsPartOfTheQuestion(t *testing.T) {
	w := ocspWorld(t)
	v, c, trust := judged(t, w, nil)
	good := w.issuing.staple(t, w.leaf, func(r *reply) { r.next = now.Add(10 * time.Minute) })
	revoked := w.issuing.staple(t, w.leaf, func(r *reply) { r.status = StatusRevoked })
	for _, tt := range []struct {
		name   string
		staple []byte
		want   Cause
	}{{"good", good, ""}, {"good again", good, ""}, {"none", nil, RevocationUnknown}, {"revoked", revoked, Revoked}, {"good after all", good, ""}} {
		r, err := v.Verify(t.Context(), trust, w.params.Chain, tt.staple)
		t.Log(tt.name)
		holdsCause(t, r, err, tt.want)
	}
	if s := v.Stats(); s.Hits != 2 {
		t.Errorf("%+v", s)
	}
	c.move(10*time.Minute + time.Second)
	r, err := v.Verify(t.Context(), trust, w.params.Chain, good)
	holdsCause(t, r, err, RevocationUnknown)
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	w := newWorld(t)
	v, _, trust := judged(t, w, func(c *VerifierConfig) { c.CacheSize, c.Revocation = 32, Off })
	key := newKey(t)
	for range 300 {
		chain := []*x509.Certificate{w.issuing.leafWithKey(t, key, nil), w.issuing.cert}
		if _, err := v.Verify(t.Context(), trust, chain, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.Stats().Remembered; n > 32 || n < 16 {
		t.Errorf("%d are remembered, at most 32 may", n)
	}
	before := v.Stats().Remembered
	if _, err := v.Verify(t.Context(), trust, w.params.Chain, make([]byte, maxCachedChain)); err != nil {
		t.Fatal(err)
	}
	if after := v.Stats().Remembered; after != before {
		t.Error("a giant staple is remembered")
	}
	if _, err := v.Verify(t.Context(), &Trust{Roots: trust.Roots}, w.params.Chain, nil); err != nil {
		t.Fatal(err)
	}
	if n := v.Stats().Remembered; n != 1 {
		t.Errorf("%d are remembered under another trust, want 1", n)
	}
}

func TestARememberedVerdictAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	v, _, trust := judged(t, w, func(c *VerifierConfig) { c.OCSP = newOCSP(t, OCSPConfig{}) })
	trust.Denied = many(t, 1000)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(context.Background(), trust, w.params.Chain, nil); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestThereIsNoTrustYet(t *testing.T) {
	w := newWorld(t)
	v, _, _ := judged(t, w, nil)
	r, err := v.Verify(t.Context(), nil, w.params.Chain, nil)
	holdsCause(t, r, err, BadParams)
}

// TestRememberedAndFreshVerdictsNeverDiffer, over random sequences of
// handshakes, changes of trust, answers of the responder, and moves of the
// clock, back too. What was revoked for good stays refused.
func TestRememberedAndFreshVerdictsNeverDiffer(t *testing.T) {
	steps, seeds := 500, 6
	if os.Getenv("LEGATION_LONG") != "" {
		steps, seeds = 4000, 40
	}
	hits := 0
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { hits += neverDiffer(t, uint64(seed), steps) })
	}
	if hits < steps*seeds/50 {
		t.Errorf("only %d verdicts of %d were remembered ones: nothing is shown", hits, steps*seeds)
	}
}

func neverDiffer(t *testing.T, seed uint64, steps int) (hits int) {
	random := rand.New(rand.NewPCG(seed, 4))
	roots := []*authority{ca(t, "root", nil, nil), ca(t, "root 2", nil, func(c *x509.Certificate) { c.NotAfter = now.Add(20 * time.Hour) })}
	issuing := []*authority{ca(t, "issuing", roots[0], nil)}
	issuing = append(issuing, caWithKey(t, "issuing", roots[1], issuing[0].key, func(c *x509.Certificate) { c.NotBefore = now.Add(2 * time.Hour) }))
	var leaves []*x509.Certificate
	for i := range 4 {
		leaves = append(leaves, issuing[0].leaf(t, func(c *x509.Certificate) {
			withURL(c)
			c.NotBefore, c.NotAfter = now.Add(time.Duration(i-6)*time.Hour), now.Add(time.Duration(i*4+8)*time.Hour)
		}))
	}
	chains := map[string][]*x509.Certificate{}
	for i, l := range leaves {
		chains[fmt.Sprintf("%d under the first", i)] = []*x509.Certificate{l, issuing[0].cert}
		chains[fmt.Sprintf("%d under the second", i)] = []*x509.Certificate{l, issuing[1].cert}
		chains[fmt.Sprintf("%d under both", i)] = []*x509.Certificate{l, issuing[1].cert, issuing[0].cert}
	}
	var names []string
	for name := range chains {
		names = append(names, name)
	}
	slices.Sort(names)
	staples := [][]byte{nil, []byte("rubbish"),
		issuing[0].staple(t, leaves[0]), issuing[0].staple(t, leaves[1], func(r *reply) { r.next = now.Add(9 * time.Hour) }),
		issuing[0].staple(t, leaves[2], func(r *reply) { r.status = StatusUnknown })}
	list := func(a *authority, number int64, revoked ...*x509.Certificate) []byte {
		return a.crl(t, number, func(l *x509.RevocationList) { l.NextUpdate = now.Add(time.Duration(2+random.IntN(28)) * time.Hour) }, revoked...)
	}
	newTrust := func() *Trust {
		trust := &Trust{Roots: Roots{domain: {}}}
		for _, r := range roots {
			if random.IntN(8) > 0 {
				trust.Roots[domain] = append(trust.Roots[domain], r.cert)
			}
		}
		var ders [][]byte
		for _, a := range []*authority{roots[0], roots[1]} {
			if random.IntN(10) > 0 {
				ders = append(ders, list(a, 1))
			}
		}
		if random.IntN(3) > 0 {
			ders = append(ders, list(issuing[0], 2, leaves[random.IntN(len(leaves))]))
		} else if random.IntN(2) == 0 {
			ders = append(ders, list(issuing[0], 3))
		}
		trust.CRLs = crls(t, ders...)
		if random.IntN(3) == 0 {
			trust.Denied = denials(t, Denial{Serial: leaves[random.IntN(len(leaves))].SerialNumber.Text(16)})
		}
		return trust
	}
	c := newClock()
	fetcher := &responders{}
	o := newOCSP(t, OCSPConfig{Fetcher: fetcher, Now: c.Now})
	final := map[string]bool{} // serials that OCSP revoked for good
	v := NewVerifier(VerifierConfig{Usage: Client, Now: c.Now, OCSP: o, Revocation: Policy(random.IntN(2)), CacheSize: 64})
	trust := newTrust()
	name, staple := names[0], staples[0]
	for step := range steps {
		switch random.IntN(40) {
		case 0:
			trust = newTrust()
		case 1, 2, 3, 4, 5, 6:
			c.move(time.Duration(random.IntN(1200)-500) * time.Second)
		case 7:
			c.set(now.Add(time.Duration(random.IntN(12*3600)-2*3600) * time.Second))
		case 8, 9:
			at, status, reason, broken := c.Now(), Status(1+random.IntN(3)), random.IntN(8), random.IntN(4) == 0
			if status == StatusRevoked && random.IntN(4) > 0 {
				status = StatusGood
			}
			fetcher.set(func(_ context.Context, q OCSPRequest) ([]byte, error) {
				for _, l := range leaves {
					id, err := newCertID(crypto.SHA1, l, issuing[0].cert)
					if err == nil && containsSerial(q.DER, id.serial) && !broken {
						return issuing[0].answer(l, func(r *reply) {
							r.status, r.reason, r.this, r.produced, r.next = status, reason, at, at, at.Add(3*time.Hour)
							r.nonce = nonceOf(t, q.DER)
						}).der(t), nil
					}
				}
				return nil, errors.New("nobody is there")
			})
		}
		if random.IntN(3) > 0 { // else the same peer as before
			name, staple = names[random.IntN(len(names))], staples[random.IntN(2)*random.IntN(len(staples))]
		}
		fresh := func() (*Result, error) {
			p := v.params(t.Context(), trust, chains[name], staple, c.Now())
			return Verify(p)
		}
		// Who is asked is asked now, so that nothing is learned between the two.
		_, _ = fresh()
		o.settle(t)
		before := v.Stats().Hits
		got, err1 := v.Verify(t.Context(), trust, chains[name], staple)
		want, err2 := fresh()
		o.settle(t)
		var e1, e2 *Error
		errors.As(err1, &e1)
		errors.As(err2, &e2)
		if (e1 == nil) != (e2 == nil) || e1 != nil && e1.Cause != e2.Cause || e1 == nil && got.ID != want.ID {
			t.Fatalf("step %d, %s at %s: remembered (%d hits) %v, fresh %v", step, name, c.Now(), v.Stats().Hits-before, err1, err2)
		}
		serial := chains[name][0].SerialNumber.Text(16)
		if e1 == nil {
			if final[serial] {
				t.Fatalf("step %d: %s was revoked for good and is accepted", step, name)
			}
		} else if e1.Cause == Revoked && e1.Revocation.Source == SourceOCSP && e1.Revocation.Reason != certificateHold {
			final[serial] = true
		}
	}
	return int(v.Stats().Hits)
}

func containsSerial(der, serial []byte) bool {
	for i := range der {
		if i+len(serial) <= len(der) && string(der[i:i+len(serial)]) == string(serial) && i > 1 && der[i-2] == 2 && int(der[i-1]) == len(serial) {
			return true
		}
	}
	return false
}

// settle waits until nobody is being asked.
func (o *OCSP) settle(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		o.mu.RLock()
		flying := o.flying
		o.mu.RUnlock()
		if flying == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d exchanges do not end", flying)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// TestAVerifierIsUsedByManyAtOnce while its trust is replaced: for the race
// detector, and no verdict outlives the trust it was asked under.
func TestAVerifierIsUsedByManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.present(w.issuing.leaf(t, withURL))
	fetcher := &responders{}
	fetcher.set(says(t, w.issuing.answer(w.leaf)))
	v, c, good := judged(t, w, func(c *VerifierConfig) { c.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher}); c.CacheSize = 16 })
	bad := &Trust{Roots: good.Roots, CRLs: good.CRLs, Denied: denials(t, Denial{ID: spiffeid.RequireFromString(workload)})}
	var group sync.WaitGroup
	for n := range 8 {
		group.Go(func() {
			for i := range 300 {
				trust, want := good, Cause("")
				if (i+n)%3 == 0 {
					trust, want = bad, Revoked
				}
				_, err := v.Verify(context.Background(), trust, w.params.Chain, nil)
				if want == "" && err != nil || want != "" && !errors.Is(err, &Error{Cause: want}) {
					t.Errorf("want %q, got %v", want, err)
					return
				}
				if i%50 == 0 {
					c.set(now.Add(time.Duration(i) * time.Second))
					v.config.OCSP.generation.Add(1)
				}
			}
		})
	}
	group.Wait()
}
