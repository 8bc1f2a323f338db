package chaincheck

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func hangs(ctx context.Context, _ OCSPRequest) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestASlowResponderHoldsAHandshakeNoLongerThanItsDeadline, whatever hangs:
// one link or all, and under Prefer it then goes on.
func TestASlowResponderHoldsAHandshakeNoLongerThanItsDeadline(t *testing.T) {
	w := newWorld(t)
	w.reissue(t, withURL)
	w.present(w.issuing.leaf(t, withURL))
	w.params.CRLs = nil
	for _, tt := range []struct {
		name    string
		policy  Policy
		context time.Duration // of the handshake, 0 none
		held    time.Duration
		want    Cause
	}{
		{"Prefer goes on after the time that OCSP has", Prefer, 0, 2 * time.Second, ""},
		{"Require refuses then", Require, 0, 2 * time.Second, RevocationUnknown},
		{"the handshake's own deadline is nearer", Prefer, 300 * time.Millisecond, 300 * time.Millisecond, ""},
		{"Off asks nobody", Off, 0, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fetcher := &responders{}
				fetcher.set(hangs)
				o := NewOCSP(OCSPConfig{Fetcher: fetcher, Now: func() time.Time { return now }})
				p := w.params
				p.OCSP, p.Revocation, p.Context = o, tt.policy, t.Context()
				if tt.context > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), tt.context)
					defer cancel()
					p.Context = ctx
				}
				start := time.Now()
				wantCause(t, p, tt.want)
				if held := time.Since(start); held != tt.held {
					t.Errorf("held for %s, want %s", held, tt.held)
				}
				// While nobody answers, what is remembered still is at once.
				start = time.Now()
				_ = o.Stats()
				o.known(w.leaf, w.issuing.cert, now)
				if held := time.Since(start); held != 0 {
					t.Errorf("memory waited for the network for %s", held)
				}
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				if held := time.Since(start); held != 0 {
					t.Errorf("Close waited %s for a responder", held)
				}
			})
		})
	}
}

// TestALateAnswerServesTheNextHandshake.
func TestALateAnswerServesTheNextHandshake(t *testing.T) {
	w := ocspWorld(t)
	synctest.Test(t, func(t *testing.T) {
		fetcher := &responders{}
		fetcher.set(func(_ context.Context, q OCSPRequest) ([]byte, error) {
			time.Sleep(3 * time.Second)
			return says(t, w.issuing.answer(w.leaf))(t.Context(), q)
		})
		o := NewOCSP(OCSPConfig{Fetcher: fetcher, Now: func() time.Time { return now }})
		defer o.Close()
		p := w.params
		p.OCSP = o
		wantCause(t, p, RevocationUnknown)
		start := time.Now()
		wantCause(t, p, "")
		if held := time.Since(start); held != time.Second {
			t.Errorf("the second waited %s for the first one's answer, want 1s", held)
		}
		if asked := fetcher.asked.Load(); asked != 1 {
			t.Errorf("asked %d times", asked)
		}
	})
}

// TestManyHandshakesAskOnce.
func TestManyHandshakesAskOnce(t *testing.T) {
	w := ocspWorld(t)
	synctest.Test(t, func(t *testing.T) {
		fetcher := &responders{}
		fetcher.set(func(_ context.Context, q OCSPRequest) ([]byte, error) {
			time.Sleep(time.Second)
			return says(t, w.issuing.answer(w.leaf))(t.Context(), q)
		})
		o := NewOCSP(OCSPConfig{Fetcher: fetcher, Now: func() time.Time { return now }})
		defer o.Close()
		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				p := w.params
				p.OCSP = o
				if _, err := Verify(p); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if asked := fetcher.asked.Load(); asked != 1 {
			t.Errorf("asked %d times", asked)
		}
	})
}

func TestAFailureIsNotTriedAgainAtOnce(t *testing.T) {
	w := ocspWorld(t)
	w.present(w.issuing.leaf(t, func(c *x509.Certificate) { withURL(c); c.NotBefore = now.Add(-50 * time.Minute) }))
	w.params.CRLs = crls(t, w.root.crl(t, 1, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(-50 * time.Minute) }))
	c := newClock()
	fetcher := &responders{}
	o := newOCSP(t, OCSPConfig{Fetcher: fetcher, Now: c.Now})
	ask := func(want Cause, asked int32) {
		t.Helper()
		p := w.params
		p.OCSP, p.Now = o, c.Now()
		wantCause(t, p, want)
		if got := fetcher.asked.Load(); got != asked {
			t.Fatalf("asked %d times, want %d", got, asked)
		}
	}
	ask(RevocationUnknown, 1)
	ask(RevocationUnknown, 1)
	c.move(9 * time.Second)
	ask(RevocationUnknown, 1)
	c.move(2 * time.Second)
	ask(RevocationUnknown, 2)
	c.move(11 * time.Second) // the second pause is longer
	ask(RevocationUnknown, 2)
	c.move(-40 * time.Minute) // a clock that is set back does not prolong it
	ask(RevocationUnknown, 3)
	fetcher.set(says(t, w.issuing.answer(w.leaf, func(r *reply) { r.this, r.produced = now.Add(-2*time.Hour), now.Add(-2*time.Hour) })))
	c.move(30 * time.Minute)
	ask("", 4)
	if s := o.Stats(); s.Failures != 3 || s.Fetches != 4 || s.Entries != 1 {
		t.Errorf("%+v", s)
	}
}

func TestOnlySoManyResponders(t *testing.T) {
	w := ocspWorld(t)
	second := w.issuing.leaf(t, withURL)
	synctest.Test(t, func(t *testing.T) {
		fetcher := &responders{}
		fetcher.set(hangs)
		o := NewOCSP(OCSPConfig{Fetcher: fetcher, MaxFetches: 1, Now: func() time.Time { return now }})
		defer o.Close()
		go func() {
			p := w.params
			p.OCSP = o
			_, _ = Verify(p)
		}()
		synctest.Wait()
		p := w.params
		p.OCSP, p.Chain = o, []*x509.Certificate{second, w.issuing.cert}
		start := time.Now()
		_, err := Verify(p)
		if err == nil || !strings.Contains(err.Error(), "1 responders are being asked already") || time.Since(start) != 0 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if s := o.Stats(); s.Busy != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestAnAnswerIsRenewedBeforeAnyoneWaits.
func TestAnAnswerIsRenewedBeforeAnyoneWaits(t *testing.T) {
	w := ocspWorld(t)
	w.params.CRLs = crls(t, w.root.crl(t, 1, func(l *x509.RevocationList) { l.NextUpdate = now.Add(24 * time.Hour) }))
	c := newClock()
	fetcher := &responders{}
	fetcher.set(func(ctx context.Context, q OCSPRequest) ([]byte, error) {
		return says(t, w.issuing.answer(w.leaf, func(r *reply) { r.this, r.produced, r.next = c.Now(), c.Now(), c.Now().Add(time.Hour) }))(ctx, q)
	})
	v := NewVerifier(VerifierConfig{Usage: Client, Now: c.Now, OCSP: newOCSP(t, OCSPConfig{Fetcher: fetcher, Now: c.Now})})
	trust := &Trust{Roots: w.params.Roots, CRLs: w.params.CRLs}
	verify := func() {
		t.Helper()
		if _, err := v.Verify(t.Context(), trust, w.params.Chain, nil); err != nil {
			t.Fatal(err)
		}
		v.config.OCSP.settle(t)
	}
	verify()
	for range 20 {
		c.move(10 * time.Minute)
		verify()
	}
	asked := fetcher.asked.Load()
	if asked < 4 || asked > 6 {
		t.Errorf("asked %d times in 200 minutes of answers for 60", asked)
	}
	// The responder is gone: the last answer serves to its end, and one
	// failure costs nobody a wait before that.
	fetcher.set(func(context.Context, OCSPRequest) ([]byte, error) { return nil, errors.New("gone") })
	c.move(20 * time.Minute)
	verify()
}

// TestWhatIsKnownNeverGoesBack: an older answer does not replace a newer one,
// and nobody is given back what was revoked for good.
func TestWhatIsKnownNeverGoesBack(t *testing.T) {
	good, hold, gone, unsure := StatusGood, 6, 1, StatusUnknown
	at := func(s Status, reason int, minute int) *ocspAnswer {
		return &ocspAnswer{status: s, reason: reason, thisUpdate: now.Add(time.Duration(minute) * time.Minute)}
	}
	for _, tt := range []struct {
		name     string
		old, new *ocspAnswer
		takes    bool
	}{
		{"the first", nil, at(good, 0, 0), true},
		{"newer", at(good, 0, 0), at(good, 0, 1), true},
		{"of the same second", at(good, 0, 0), at(good, 0, 0), true},
		{"older", at(good, 0, 1), at(good, 0, 0), false},
		{"older, but it revokes", at(good, 0, 1), at(StatusRevoked, gone, 0), true},
		{"good again after a hold", at(StatusRevoked, hold, 0), at(good, 0, 1), true},
		{"good again after a hold, but older", at(StatusRevoked, hold, 1), at(good, 0, 0), false},
		{"revoked for good after a hold", at(StatusRevoked, hold, 1), at(StatusRevoked, gone, 0), true},
		{"good again after revocation", at(StatusRevoked, gone, 0), at(good, 0, 9), false},
		{"unknown after revocation", at(StatusRevoked, gone, 0), at(unsure, 0, 9), false},
		{"a hold after revocation", at(StatusRevoked, gone, 0), at(StatusRevoked, hold, 9), false},
		{"unknown after good", at(good, 0, 0), at(unsure, 0, 1), true},
	} {
		e := &ocspEntry{answer: tt.old}
		_ = e.learnLocked(tt.new)
		if took := e.answer == tt.new; took != tt.takes {
			t.Errorf("%s: taken %v", tt.name, took)
		}
	}
}

// TestOCSPMemoryIsBounded and forgets what is revoked last.
func TestOCSPMemoryIsBounded(t *testing.T) {
	w := ocspWorld(t)
	fetcher := &responders{}
	o := newOCSP(t, OCSPConfig{Fetcher: fetcher, MaxEntries: 32})
	fetcher.set(says(t, w.issuing.answer(w.leaf, func(r *reply) { r.status = StatusRevoked })))
	ask := func(leaf *x509.Certificate, want Cause) {
		t.Helper()
		p := w.params
		p.OCSP, p.Chain = o, []*x509.Certificate{leaf, w.issuing.cert}
		_, err := Verify(p)
		if !errors.Is(err, &Error{Cause: want}) {
			t.Fatalf("want %s, got %v", want, err)
		}
	}
	ask(w.leaf, Revoked)
	fetcher.set(nil)
	key := newKey(t)
	for range 200 {
		ask(w.issuing.leafWithKey(t, key, withURL), RevocationUnknown)
	}
	if n := o.Stats().Entries; n > 32 {
		t.Errorf("%d are remembered, at most 32 may", n)
	}
	asked := fetcher.asked.Load()
	ask(w.leaf, Revoked)
	if fetcher.asked.Load() != asked {
		t.Error("what was revoked was forgotten first")
	}
}

// TestAnAnswerWhoseResponderIsTakenBackIsAskedForAnew: the next responder need
// not wait until the first one's answers grow old.
func TestAnAnswerWhoseResponderIsTakenBackIsAskedForAnew(t *testing.T) {
	w := ocspWorld(t)
	first, second := w.issuing.responder(t, nil), w.issuing.responder(t, nil)
	c := newClock()
	fetcher := &responders{}
	fetcher.set(says(t, w.issuing.answer(w.leaf, by(first))))
	p := w.params
	p.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher, Now: c.Now})
	wantCause(t, p, "")
	fetcher.set(says(t, w.issuing.answer(w.leaf, by(second))))
	p.Denied = denials(t, Denial{SPKI: spkiHash(first.cert), Reason: "its key was lost"})
	wantCause(t, p, RevocationUnknown) // it was asked a moment ago
	c.move(ocspBackoff + time.Second)
	p.Now = c.Now()
	result := wantCause(t, p, "")
	if r := result.Links[0].Revocation; !strings.Contains(r.Responder, second.cert.SerialNumber.Text(16)) {
		t.Errorf("%s", r)
	}
	if asked := fetcher.asked.Load(); asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// TestALoggerMayAskBack: what it is told is not said under a lock.
func TestALoggerMayAskBack(t *testing.T) {
	w := ocspWorld(t)
	fetcher := &responders{}
	var o *OCSP
	var told atomic.Int32
	o = newOCSP(t, OCSPConfig{Fetcher: fetcher, MaxEntries: 2, Logger: slog.New(asks{slog.DiscardHandler, func(text string) {
		o.Stats()
		if strings.Contains(text, "forgotten") {
			told.Add(1)
		}
	}})})
	for range 4 {
		leaf := w.issuing.leaf(t, withURL)
		fetcher.set(says(t, w.issuing.answer(leaf, func(r *reply) { r.status = StatusRevoked })))
		p := w.params
		p.OCSP, p.Chain = o, []*x509.Certificate{leaf, w.issuing.cert}
		wantCause(t, p, Revoked)
	}
	if n := told.Load(); n != 2 {
		t.Errorf("%d revocations are told to be forgotten, want 2", n)
	}
}

type asks struct {
	slog.Handler
	back func(string)
}

func (asks) Enabled(context.Context, slog.Level) bool { return true }

func (a asks) Handle(_ context.Context, r slog.Record) error { a.back(r.Message); return nil }

func TestWhichRespondersAreAsked(t *testing.T) {
	for _, tt := range []struct {
		name string
		urls []string
		want []string
	}{
		{"none named", nil, nil},
		{"https is not asked: its certificate would need OCSP", []string{"https://a/"}, nil},
		{"ldap neither", []string{"ldap://a/"}, nil},
		{"the first two", []string{"http://a/", "http://b/", "http://c/"}, []string{"http://a/", "http://b/"}},
		{"what is not asked does not count", []string{"https://a/", "HTTP://b/", "http://c/"}, []string{"HTTP://b/", "http://c/"}},
		{"a giant URL", []string{"http://" + strings.Repeat("a", maxURL)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := responderURLs(&x509.Certificate{OCSPServer: tt.urls}); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%q", got)
			}
		})
	}
	w := newWorld(t)
	fetcher := &responders{}
	var mu sync.Mutex
	var order []string
	w.present(w.issuing.leaf(t, func(c *x509.Certificate) { c.OCSPServer = []string{"http://dead/", "http://live/"} }))
	fetcher.set(func(ctx context.Context, q OCSPRequest) ([]byte, error) {
		mu.Lock()
		order = append(order, q.URL)
		mu.Unlock()
		if q.URL == "http://dead/" {
			return nil, errors.New("no route")
		}
		return says(t, w.issuing.answer(w.leaf))(ctx, q)
	})
	w.params.CRLs = crls(t, w.root.crl(t, 1, nil))
	w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
	wantCause(t, w.params, "")
	if fmt.Sprint(order) != "[http://dead/ http://live/]" {
		t.Errorf("%v", order)
	}
}

// TestWithoutAnOCSPURLTheListsDecide, by policy, and nobody is asked.
func TestWithoutAnOCSPURLTheListsDecide(t *testing.T) {
	fetcher := &responders{}
	for _, tt := range []struct {
		name   string
		policy Policy
		lists  bool
		want   Cause
	}{
		{"Require, with a list", Require, true, ""},
		{"Require, without", Require, false, RevocationUnknown},
		{"Prefer, without", Prefer, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.params.Revocation, w.params.OCSP = tt.policy, newOCSP(t, OCSPConfig{Fetcher: fetcher})
			if !tt.lists {
				w.params.CRLs = nil
			}
			wantCause(t, w.params, tt.want)
		})
	}
	if fetcher.asked.Load() != 0 {
		t.Error("somebody was asked")
	}
}

// TestA08NobodyIsAskedForAStranger: only certificates whose path to an anchor
// holds lead to a request.
func TestA08NobodyIsAskedForAStranger(t *testing.T) {
	w := ocspWorld(t)
	fetcher := &responders{}
	w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
	stranger := ca(t, "issuing", ca(t, "root", nil, nil), nil)
	w.params.Chain = []*x509.Certificate{stranger.leaf(t, withURL), stranger.cert}
	_, err := Verify(w.params)
	if err == nil || fetcher.asked.Load() != 0 {
		t.Errorf("%v, and %d questions were sent", err, fetcher.asked.Load())
	}
	// And what is denied or revoked anyway asks nobody either.
	w = ocspWorld(t)
	w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
	w.params.Denied = denials(t, Denial{SPKI: spkiHash(w.issuing.cert)})
	wantCause(t, w.params, Revoked)
	if fetcher.asked.Load() != 0 {
		t.Error("somebody was asked about what is denied")
	}
}

func TestCloseWaitsAndMemoryStays(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := ocspWorld(t)
	fetcher := &responders{}
	fetcher.set(says(t, w.issuing.answer(w.leaf)))
	o := NewOCSP(OCSPConfig{Fetcher: fetcher, Timeout: time.Minute, FetchTimeout: time.Minute, Now: func() time.Time { return now }})
	w.params.OCSP = o
	wantCause(t, w.params, "")
	fetcher.set(hangs)
	p := w.params
	p.Chain = []*x509.Certificate{w.issuing.leaf(t, withURL), w.issuing.cert}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = Verify(p) }()
	for deadline := time.Now().Add(time.Minute); fetcher.asked.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody is asked")
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
	wantCause(t, w.params, "")
	p.Chain = []*x509.Certificate{w.issuing.leaf(t, withURL), w.issuing.cert}
	if _, err := Verify(p); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("%v", err)
	}
}

// TestA09PathologicalOCSPCostsBoundedWork: a peer decides what is stapled and
// how many paths there are.
func TestA09PathologicalOCSPCostsBoundedWork(t *testing.T) {
	w := ocspWorld(t)
	responder := w.issuing.responder(t, nil)
	w.params.Staple = w.issuing.staple(t, w.leaf, by(responder), func(r *reply) {
		r.others, r.badSignature = maxOCSPAnswers-1, true
		for len(r.certs) < maxOCSPResponder {
			r.certs = append(r.certs, responder.cert.Raw)
		}
	})
	for range 12 { // the same CA in many certificates: many paths
		w.params.Chain = append(w.params.Chain, caWithKey(t, "issuing", w.root, w.issuing.key, nil).cert)
	}
	fetcher := &responders{}
	w.params.OCSP = newOCSP(t, OCSPConfig{Fetcher: fetcher})
	_, err := Verify(w.params)
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Cause != RevocationUnknown && refusal.Cause != TooComplex {
		t.Fatal(err)
	}
	if work := refusal.Work; work.Signatures > maxSignatures+4 || work.Waits > maxWaits {
		t.Errorf("%+v", work)
	}
	if asked := fetcher.asked.Load(); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}
