package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
)

func TestARevokedSerialIsInTheNextCRL(t *testing.T) {
	w := newWorld(t)
	a := w.replica()
	_, kept := sign(t, a, requestFor(t, idOf("/w")))
	req := requestFor(t, idOf("/w"))
	_, gone := sign(t, a, req)
	state, changed := a.State()
	number := state.CRL.Number

	rev, err := a.Revoke(context.Background(), RevokeRequest{Serial: gone.Serial, Reason: "key leaked", Actor: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	if rev.CrlNumber != number+1 || !slices.Equal(rev.Serials, []string{gone.Serial}) || rev.BlocksIssuance || rev.Reason != "key leaked" || rev.Authority != "default" {
		t.Errorf("revocation %v", rev)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was woken")
	}
	serials := crlSerials(t, a)
	if !serials[gone.Serial] || serials[kept.Serial] {
		t.Errorf("CRL has %v, want %s alone", serials, gone.Serial)
	}
	if r, ok := func() (Revoked, bool) { s, _ := a.State(); return s.Revoked(gone.Serial) }(); !ok || r.Reason != "key leaked" {
		t.Errorf("Revoked = %+v, %v", r, ok)
	}

	t.Run("again is answered the same", func(t *testing.T) {
		again, err := a.Revoke(context.Background(), RevokeRequest{Serial: gone.Serial})
		if err != nil || again.Id != rev.Id {
			t.Errorf("Revoke = %v, %v; want %s", again, err, rev.Id)
		}
		if state, _ := a.State(); state.CRL.Number != number+1 {
			t.Errorf("CRL number %d, want %d", state.CRL.Number, number+1)
		}
	})
	t.Run("its key is refused, a new one is not", func(t *testing.T) {
		if err := a.SignX509(context.Background(), []X509Request{req})[0].Err; !fault.Is(err, fault.Denied) {
			t.Errorf("the revoked key: %v, want denied", err)
		}
		sign(t, a, requestFor(t, req.ID))
	})
	t.Run("a restart knows it", func(t *testing.T) {
		b := w.replica()
		if !crlSerials(t, b)[gone.Serial] {
			t.Error("the CRL lost a serial over a restart")
		}
		if state, _ := b.State(); state.Revocations[rev.Id] == nil {
			t.Error("the revocation was lost over a restart")
		}
	})
	t.Run("an unknown serial is not found", func(t *testing.T) {
		if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: "4000000000000000000000000000dead"}); !fault.Is(err, fault.NotFound) {
			t.Errorf("Revoke = %v, want not found", err)
		}
	})
	t.Run("it names exactly one thing", func(t *testing.T) {
		for _, req := range []RevokeRequest{{}, {Serial: gone.Serial, Node: "n"}, {ID: idOf("/w"), Node: "n"}, {ID: spiffeid.RequireFromString("spiffe://other.org/w")}} {
			if _, err := a.Revoke(context.Background(), req); !fault.Is(err, fault.Invalid) {
				t.Errorf("Revoke(%+v) = %v, want invalid", req, err)
			}
		}
	})
}

func TestARevokedIdentityGetsNothingUntilLifted(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	one, two := w.replica(), w.replica()
	w.run(one, two)
	id, other := idOf("/ns/default/sa/web"), idOf("/ns/default/sa/db")
	var want []string
	for i := range 4 {
		_, r := sign(t, []*Authority{one, two}[i%2], requestFor(t, id))
		want = append(want, r.Serial)
	}
	_, bystander := sign(t, one, requestFor(t, other))

	rev, err := one.Revoke(ctx, RevokeRequest{ID: id, Reason: "stolen"})
	if err != nil {
		t.Fatal(err)
	}
	serials := slices.Clone(rev.Serials)
	slices.Sort(serials)
	slices.Sort(want)
	if !slices.Equal(serials, want) || !rev.BlocksIssuance || rev.SpiffeId != id.String() {
		t.Errorf("revocation %v, want serials %v", rev, want)
	}
	if crlSerials(t, one)[bystander.Serial] {
		t.Error("a bystander was revoked")
	}
	// The other replica refuses at once, whatever it has heard so far.
	for _, a := range []*Authority{one, two} {
		if r := a.SignX509(ctx, []X509Request{requestFor(t, id)})[0]; !fault.Is(r.Err, fault.Denied) || r.Chain != nil {
			t.Errorf("SignX509 = %v, want denied", r.Err)
		}
		if _, err := a.SignJWT(ctx, JWTRequest{ID: id, Audience: []string{"x"}}); !fault.Is(err, fault.Denied) {
			t.Errorf("SignJWT = %v, want denied", err)
		}
		sign(t, a, requestFor(t, other))
	}
	again, err := two.Revoke(ctx, RevokeRequest{ID: id})
	if err != nil || again.Id != rev.Id {
		t.Errorf("again: %v, %v; want the same revocation", again, err)
	}

	if err := two.Lift(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	sign(t, two, requestFor(t, id))
	eventually(t, "the other replica issues again", func() bool {
		return one.SignX509(ctx, []X509Request{requestFor(t, id)})[0].Err == nil
	})
	if got := crlSerials(t, two); !got[want[0]] {
		t.Error("lifting un-revoked a serial")
	}
	if err := one.Lift(ctx, id, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("a second Lift = %v, want not found", err)
	}
	second, err := one.Revoke(ctx, RevokeRequest{ID: id})
	if err != nil || second.Id == rev.Id || len(second.Serials) != 2 {
		t.Errorf("revoked anew: %v, %v; want a new revocation of 2 serials", second, err)
	}
}

func TestARevokedNodeLosesItsCertificatesAndItsAgents(t *testing.T) {
	ctx := context.Background()
	a := newWorld(t).replica()
	agent := requestFor(t, idOf("/legation/agent/node-1"))
	agent.Profile = ProfileAgent
	_, agentCert := sign(t, a, agent)
	_, workload := sign(t, a, requestFor(t, idOf("/w")))
	elsewhere := requestFor(t, idOf("/w"))
	elsewhere.Node = "node-2"
	_, kept := sign(t, a, elsewhere)

	if _, err := a.Revoke(ctx, RevokeRequest{Node: "node-1"}); err != nil {
		t.Fatal(err)
	}
	serials := crlSerials(t, a)
	if !serials[agentCert.Serial] || !serials[workload.Serial] || serials[kept.Serial] {
		t.Errorf("CRL has %v", serials)
	}
	if state, _ := a.State(); !state.BlockedNodes["node-1"] {
		t.Error("the node is not blocked")
	}
	for _, req := range []X509Request{requestFor(t, idOf("/other")), agent} {
		if err := a.SignX509(ctx, []X509Request{req})[0].Err; !fault.Is(err, fault.Denied) {
			t.Errorf("%s on a revoked node: %v, want denied", req.ID, err)
		}
	}
	elsewhere.CSR = newCSR(t, newKey(t))
	sign(t, a, elsewhere)
	if err := a.Lift(ctx, spiffeid.ID{}, "node-1"); err != nil {
		t.Fatal(err)
	}
	sign(t, a, requestFor(t, idOf("/other")))
}

func TestASupersededSerialIsRevokedAndBlocksNothing(t *testing.T) {
	ctx := context.Background()
	a := newWorld(t).replica()
	_, old := sign(t, a, requestFor(t, idOf("/w")))
	number, err := a.RevokeSuperseded(ctx, old.Serial)
	if err != nil {
		t.Fatal(err)
	}
	state, _ := a.State()
	if number != 2 || len(state.Revocations) != 0 || !crlSerials(t, a)[old.Serial] {
		t.Errorf("number %d, revocations %v", number, state.Revocations)
	}
	list, err := x509.ParseRevocationList(state.CRL.Lists[0])
	if err != nil || list.RevokedCertificateEntries[0].ReasonCode != reasonSuperseded {
		t.Errorf("reason %v, %v", list.RevokedCertificateEntries, err)
	}
	if again, err := a.RevokeSuperseded(ctx, old.Serial); err != nil || again != number {
		t.Errorf("again: %d, %v", again, err)
	}
	// An operator who revokes it makes it a revocation that ends connections.
	if rev, err := a.Revoke(ctx, RevokeRequest{Serial: old.Serial}); err != nil || !slices.Equal(rev.Serials, []string{old.Serial}) {
		t.Errorf("Revoke = %v, %v", rev, err)
	}
	if len(crlSerials(t, a)) != 1 {
		t.Error("the serial is in the CRL twice")
	}
}

// A certificate that is signed while its identity is revoked, by another
// replica, is either refused or revoked: never handed out and good.
func TestNothingSignedDuringARevocationEscapes(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	revoker, signer := w.replica(), w.replica()
	w.run(revoker, signer)
	key := newKey(t)
	csr := newCSR(t, key)
	for round := range 12 {
		id := idOf(fmt.Sprintf("/raced/%d", round))
		var mu sync.Mutex
		var out []string
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 3 {
			a := []*Authority{revoker, signer}[i%2]
			wg.Go(func() {
				<-start
				for range 20 {
					r := a.SignX509(ctx, []X509Request{{Profile: ProfileWorkload, CSR: csr, ID: id, Node: "n"}})[0]
					mu.Lock()
					if r.Err == nil {
						out = append(out, r.Serial)
					} else if !fault.Is(r.Err, fault.Denied) {
						t.Error(r.Err)
					}
					mu.Unlock()
					if r.Err != nil {
						return
					}
				}
			})
		}
		var rev []string
		wg.Go(func() {
			<-start
			time.Sleep(time.Duration(round) * 300 * time.Microsecond)
			r, err := revoker.Revoke(ctx, RevokeRequest{ID: id})
			if err != nil {
				t.Error(err)
				return
			}
			rev = r.Serials
		})
		close(start)
		wg.Wait()
		key = newKey(t) // the old one is revoked now
		csr = newCSR(t, key)
		// Whatever was handed out before Revoke returned is in its answer, and
		// nothing was handed out after.
		for _, serial := range out {
			if !slices.Contains(rev, serial) {
				t.Fatalf("round %d: %s left and is not among the %d revoked", round, serial, len(rev))
			}
		}
		eventually(t, "the last segments' serials are in the CRL", func() bool {
			serials := crlSerials(t, revoker)
			records, _ := revoker.journal.List(ledger.Filter{SPIFFEID: id.String()})
			for _, r := range records {
				if !serials[r.Serial] {
					return false
				}
			}
			return len(records) >= len(out)
		})
	}
}

// A32, in part: numbers only grow, by one, whoever signs; no list drops an
// unexpired serial.
func TestA32TwoReplicasRevokingAtOnceLoseNothing(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	replicas := []*Authority{w.replica(), w.replica()}
	w.run(replicas...)
	const each = 10
	serials := make([][]string, len(replicas))
	for i, a := range replicas {
		for range each {
			_, r := sign(t, a, requestFor(t, idOf("/w")))
			serials[i] = append(serials[i], r.Serial)
		}
	}
	stop := make(chan struct{})
	var watched sync.WaitGroup
	watched.Go(func() {
		number, have := uint64(0), map[string]bool{}
		for {
			state, changed := replicas[0].State()
			now := crlSerials(t, replicas[0])
			if state.CRL.Number < number {
				t.Errorf("CRL number went from %d to %d", number, state.CRL.Number)
			}
			for s := range have {
				if !now[s] {
					t.Errorf("CRL %d dropped the unexpired %s", state.CRL.Number, s)
				}
			}
			number, have = state.CRL.Number, now
			select {
			case <-changed:
			case <-stop:
				return
			}
		}
	})
	var wg sync.WaitGroup
	for i, a := range replicas {
		for _, serial := range serials[i] {
			wg.Go(func() {
				if _, err := a.Revoke(ctx, RevokeRequest{Serial: serial}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	close(stop)
	watched.Wait()
	for _, a := range replicas {
		eventually(t, "both replicas hold all revocations", func() bool { s, _ := a.State(); return s.CRL.Number == 1+2*each })
		if got := len(crlSerials(t, a)); got != 2*each {
			t.Errorf("CRL has %d serials, want %d", got, 2*each)
		}
	}
}

func TestExpiredSerialsLeaveTheCRLAfterTheGraceOnly(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a := w.replica()
	req := requestFor(t, idOf("/w"))
	req.TTL = time.Hour
	_, short := sign(t, a, req)
	_, long := sign(t, a, requestFor(t, idOf("/w")))
	for _, r := range []X509Result{short, long} {
		if _, err := a.Revoke(ctx, RevokeRequest{Serial: r.Serial}); err != nil {
			t.Fatal(err)
		}
	}
	later := func(d time.Duration) *Authority {
		w.clock = &clock.Skewed{}
		w.clock.Jump(d)
		b := w.replica()
		if err := b.tidy(ctx); err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := later(119 * time.Minute)
	if got := crlSerials(t, b); !got[short.Serial] {
		t.Error("a serial left within the grace")
	}
	b = later(121 * time.Minute)
	if got := crlSerials(t, b); got[short.Serial] || !got[long.Serial] {
		t.Errorf("CRL has %v, want %s alone", got, long.Serial)
	}
	if state, _ := b.State(); len(state.Revocations) != 1 {
		t.Errorf("%d revocations, want the one with a serial left", len(state.Revocations))
	}

	t.Run("a clock that jumped un-revokes nothing", func(t *testing.T) {
		w.clock.Jump(1000 * time.Hour)
		_ = b.tidy(ctx)
		if got := crlSerials(t, b); !got[long.Serial] {
			t.Error("a jump of the clock dropped a serial")
		}
	})
}

func TestACRLIsNeverDatedInTheFuture(t *testing.T) {
	w := newWorld(t)
	a := w.replica()
	_, r := sign(t, a, requestFor(t, idOf("/w")))
	w.clock.Jump(time.Hour)
	if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: r.Serial}); err != nil {
		t.Fatal(err) // revoking works whatever the clock says
	}
	state, _ := a.State()
	list, err := x509.ParseRevocationList(state.CRL.Lists[0])
	if err != nil || list.ThisUpdate.After(time.Now()) {
		t.Errorf("the list is of %s, %v", list.ThisUpdate, err)
	}
}

func TestTenThousandRevocationsFitOneCRL(t *testing.T) {
	a := newWorld(t).replica()
	k := a.copyKnown()
	var entries []crlEntry
	for i := range 10_000 {
		serial := newSerial()
		entries = append(entries, crlEntry{Serial: serialHex(serial.Add(serial, big.NewInt(int64(i)))), RevokedAt: time.Now(), NotAfter: time.Now().Add(time.Hour)})
	}
	next, err := a.nextCRL(k.crl, entries, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	value := next.encode()
	back, err := decodeCRL(value)
	if err != nil || len(back.Entries) != len(entries) || back.Entries[77].Serial != entries[77].Serial {
		t.Fatalf("read back: %v", err)
	}
	if len(value) > 1<<20 {
		t.Errorf("%d bytes, want less than 1 MiB", len(value))
	}
}
