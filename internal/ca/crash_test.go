package ca

import (
	"context"
	"runtime"
	"slices"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
)

// crash runs f on a replica that dies at the n-th visit of a failpoint: its
// goroutine ends there and nothing of it runs on; the store stays.
func crash(t *testing.T, w *world, at string, visit int, f func(a *Authority)) (died bool) {
	t.Helper()
	done := make(chan struct{})
	died = true
	go func() {
		defer close(done)
		a, err := w.open(func(name string) {
			if name == at {
				if visit--; visit == 0 {
					runtime.Goexit()
				}
			}
		})
		if err != nil {
			t.Error(err)
		} else if f != nil {
			f(a)
		}
		died = false
	}()
	<-done
	return died
}

// A17: whatever instant a replica dies at, each certificate that left it is
// known, listable and revocable, and what was never finished left nothing half.
func TestA17AKillAtAnyInstantLeavesNoUnknownCertificate(t *testing.T) {
	ctx := context.Background()
	for _, at := range []string{"x509:signed", "x509:recorded", "jwt:signed", "jwt:recorded"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.replica()
			var left []string
			if !crash(t, w, at, 2, func(a *Authority) {
				for range 3 {
					r := a.SignX509(ctx, []X509Request{requestFor(t, idOf("/w"))})[0]
					if r.Err != nil {
						t.Error(r.Err)
						return
					}
					left = append(left, r.Serial)
					if _, err := a.SignJWT(ctx, JWTRequest{ID: idOf("/w"), Audience: []string{"x"}}); err != nil {
						t.Error(err)
					}
				}
			}) {
				t.Fatal("the failpoint was not met")
			}
			after := w.replica()
			for _, serial := range left {
				if _, err := after.journal.BySerial(serial); err != nil {
					t.Errorf("a certificate left and is not known: %v", err)
				}
				if _, total := after.journal.List(ledger.Filter{SerialPrefix: serial}); total != 1 {
					t.Errorf("%s is listed %d times", serial, total)
				}
				if _, err := after.Revoke(ctx, RevokeRequest{Serial: serial}); err != nil {
					t.Errorf("a certificate left and cannot be revoked: %v", err)
				}
			}
			// Recorded and never handed out is allowed, and revocable too.
			records, _ := after.journal.List(ledger.Filter{Kind: ledger.KindX509})
			for _, r := range records {
				if _, err := after.Revoke(ctx, RevokeRequest{Serial: r.Serial}); err != nil {
					t.Error(err)
				}
			}
			sign(t, after, requestFor(t, idOf("/w")))
		})
	}
}

func TestA17AKilledFirstStartLeavesNothingHalf(t *testing.T) {
	for _, tc := range []struct {
		at    string
		visit int
	}{{"create:key", 1}, {"create:key", 2}, {"create:key", 3}, {"create:signed", 1}, {"create:stored", 1}} {
		w := newWorld(t)
		if !crash(t, w, tc.at, tc.visit, nil) {
			t.Fatalf("%s was not met", tc.at)
		}
		a := w.replica()
		crlSerials(t, a)
		sign(t, a, requestFor(t, idOf("/w")))
		if b := w.replica(); b.BundleHash() != a.BundleHash() {
			t.Errorf("%s: two roots", tc.at)
		}
	}
}

func TestA17AKilledRevocationIsWholeOrAbsent(t *testing.T) {
	ctx := context.Background()
	for _, at := range []string{"crl:signed", "crl:stored", "revoke:blocked"} {
		for _, by := range []string{"serial", "identity"} {
			if by == "serial" && at == "revoke:blocked" {
				continue
			}
			w := newWorld(t)
			_, r := sign(t, w.replica(), requestFor(t, idOf("/w")))
			req := RevokeRequest{Serial: r.Serial}
			if by == "identity" {
				req = RevokeRequest{ID: idOf("/w")}
			}
			if !crash(t, w, at, 1, func(a *Authority) { _, _ = a.Revoke(ctx, req) }) {
				t.Fatalf("%s was not met", at)
			}
			after := w.replica()
			state, _ := after.State()
			inCRL := crlSerials(t, after)[r.Serial]
			if stored := at != "crl:signed"; inCRL != stored || (len(state.Revocations) == 1) != stored || (len(state.Blocked) == 1) != (stored && by == "identity") {
				t.Errorf("%s, by %s: in the CRL %v, revocations %v, blocked %v", at, by, inCRL, state.Revocations, state.Blocked)
			}
			if _, err := after.Revoke(ctx, req); err != nil { // the operator tries again
				t.Error(err)
			}
			if !crlSerials(t, after)[r.Serial] {
				t.Error("not revoked after the second try")
			}
		}
	}
}

// What another replica recorded between the revoker's look at the journal and
// its commit is revoked too, by the revoker, or when it is killed, by any
// other replica.
func TestACertificateRecordedWhileARevocationCommitsIsRevoked(t *testing.T) {
	ctx := context.Background()
	for _, killed := range []bool{false, true} {
		w := newWorld(t)
		id := idOf("/w")
		other := w.replica()
		w.run(other)
		_, early := sign(t, other, requestFor(t, id))
		var late string
		var rev []string
		crashed := crashWith(t, w, func(name string) {
			switch {
			case name == "crl:signed" && late == "":
				_, r := sign(t, other, requestFor(t, id))
				late = r.Serial
			case name == "revoke:blocked" && killed:
				runtime.Goexit()
			}
		}, func(a *Authority) {
			r, err := a.Revoke(ctx, RevokeRequest{ID: id})
			if err != nil {
				t.Error(err)
				return
			}
			rev = r.Serials
		})
		if crashed != killed {
			t.Fatalf("killed %v, want %v", crashed, killed)
		}
		if !killed && (!slices.Contains(rev, late) || !slices.Contains(rev, early.Serial)) {
			t.Errorf("Revoke returned %v without %s", rev, late)
		}
		eventually(t, "the late certificate is in the CRL of every replica", func() bool { return crlSerials(t, other)[late] })
	}
}

func crashWith(t *testing.T, w *world, failpoint func(string), f func(a *Authority)) (died bool) {
	t.Helper()
	done := make(chan struct{})
	died = true
	go func() {
		defer close(done)
		a, err := w.open(failpoint)
		if err != nil {
			t.Error(err)
			return
		}
		f(a)
		died = false
	}()
	<-done
	return died
}

// A commit whose answer is lost counts as recorded: nothing is handed out,
// and nothing unknown exists.
func TestA17ALostAnswerOfTheStoreHandsNothingOut(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	real := w.store
	w.replica()
	lossy := &lostAnswer{Store: real}
	w.store = lossy
	a := w.replica()
	lossy.lose = true
	r := a.SignX509(ctx, []X509Request{requestFor(t, idOf("/w"))})[0]
	if !fault.Is(r.Err, fault.Unavailable) || r.Chain != nil {
		t.Fatalf("result %+v, want unavailable", r)
	}
	w.store = real
	if _, total := w.replica().journal.List(ledger.Filter{}); total != 1 {
		t.Errorf("%d records, want the one that was committed", total)
	}
}

type lostAnswer struct {
	store.Store
	lose bool
}

func (l *lostAnswer) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	revision, err := l.Store.Commit(ctx, txn)
	if l.lose && err == nil {
		return 0, fault.New(fault.Unavailable, "the answer was lost")
	}
	return revision, err
}
