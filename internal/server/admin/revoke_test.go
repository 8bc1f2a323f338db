package admin

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/acks"
	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const web = "spiffe://example.org/ns/retail/sa/web"

// told collects what a revocation streams.
type told struct {
	mu   sync.Mutex
	list []*adminv1.RevokeProgress
}

func (c *told) send(p *adminv1.RevokeProgress) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, p)
	return nil
}

func (c *told) all() []*adminv1.RevokeProgress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

// holds is an Envoy's line: which CRL it has acknowledged.
func holds(s *acks.Session, subscriber string, number uint64) error {
	return s.Apply(&nodev1.ReportRequest{States: []*nodev1.SubscriberState{{
		Subscriber: subscriber, Class: nodev1.Class_CLASS_ACKNOWLEDGED, SpiffeId: web, Type: "secret", Name: "ROOTCA",
		SentVersion: "v", AckedVersion: "v", AckedCrlNumber: number,
	}}})
}

func TestARevocationIsFollowedUntilEverybodyHasIt(t *testing.T) {
	o := newOffice(t)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	one, two := o.p.Acks.Open("node-1"), o.p.Acks.Open("node-2")
	must(t, holds(one, "envoy/a", 1))
	must(t, holds(two, "envoy/b", 1))

	got, done := &told{}, make(chan error, 1)
	go func() {
		done <- o.revoke(owner(t), &adminv1.RevokeRequest{Serial: serial[:10], WaitMillis: 20_000}, got.send)
	}()
	eventually(t, "the first word", func() bool { return len(got.all()) > 0 })
	first := got.all()[0]
	if !slices.Equal(first.Missing, []string{"node-1/envoy/a", "node-2/envoy/b"}) || first.AcknowledgedNanos != 0 || first.CommittedNanos <= 0 || first.Done {
		t.Errorf("the first word is %v", first)
	}
	if !slices.Equal(first.Serials, []string{serial}) {
		t.Errorf("ten digits revoked %v, not %s", first.Serials, serial)
	}
	must(t, holds(one, "envoy/a", first.CrlNumber))
	eventually(t, "one of two", func() bool { l := got.all(); return l[len(l)-1].Acknowledged == 1 })
	must(t, holds(two, "envoy/b", first.CrlNumber+1)) // a later list says it too
	must(t, two.Apply(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{Revocation: first.Id, Subscriber: "envoy/b", Closed: 3, TookNanos: 7}}}))
	must(t, <-done)
	list := got.all()
	last := list[len(list)-1]
	if !last.Done || len(last.Missing) != 0 || last.Acknowledged != 2 || last.AcknowledgedNanos <= 0 || last.ConnectionsClosed != 3 || last.ConnectionsNanos != 7 {
		t.Errorf("the last word is %v", last)
	}
	for _, p := range list[:len(list)-1] {
		if p.Done {
			t.Errorf("done came before the end: %v", p)
		}
	}
}

// The counts of ended connections arrive after the acknowledgements: the last
// word waits until they stand still.
func TestTheLastWordWaitsForConnectionsThatStillEnd(t *testing.T) {
	o := newOffice(t)
	o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	s := o.p.Acks.Open("node-1")
	got, done := &told{}, make(chan error, 1)
	go func() {
		done <- o.revoke(owner(t), &adminv1.RevokeRequest{SpiffeId: web, WaitMillis: 20_000}, got.send)
	}()
	eventually(t, "the first word", func() bool { return len(got.all()) > 0 })
	id := got.all()[0].Id
	begun := time.Now()
	const rounds = 8
	for n := 1; n <= rounds; n++ { // each within the time to settle, together beyond it
		must(t, s.Apply(&nodev1.ReportRequest{Ended: []*nodev1.ConnectionsEnded{{Revocation: id, Subscriber: "envoy/a", Closed: uint32(n)}}}))
		pause := time.NewTimer(settle / 4)
		select {
		case err := <-done:
			t.Fatalf("%v after %s, round %d: %v", got.all()[len(got.all())-1], time.Since(begun), n, err)
		case <-pause.C:
		}
	}
	must(t, <-done)
	if last := got.all()[len(got.all())-1]; last.ConnectionsClosed != rounds || !last.Done {
		t.Errorf("the last word is %v, want %d connections", last, rounds)
	}
}

func TestTheWaitForARevocationIsBounded(t *testing.T) {
	o := newOffice(t)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	must(t, holds(o.p.Acks.Open("node-1"), "envoy/a", 1)) // never acknowledges more
	t.Run("by what was asked, and then says who is missing", func(t *testing.T) {
		got, begun := &told{}, time.Now()
		must(t, o.revoke(owner(t), &adminv1.RevokeRequest{Serial: serial, WaitMillis: 50}, got.send))
		last := got.all()[len(got.all())-1]
		if took := time.Since(begun); took > 4*time.Second || !last.Done || !slices.Equal(last.Missing, []string{"node-1/envoy/a"}) || last.AcknowledgedNanos != 0 {
			t.Errorf("after %s: %v", took, last)
		}
	})
	t.Run("by the caller, who may go", func(t *testing.T) {
		ctx, cancel := context.WithCancel(owner(t))
		defer cancel()
		err := o.revoke(ctx, &adminv1.RevokeRequest{SpiffeId: web, WaitMillis: 60_000}, func(*adminv1.RevokeProgress) error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if state, _ := o.p.Authority.State(); !state.Blocked[web] {
			t.Error("a revocation depends on who asked for it staying")
		}
	})
	t.Run("and a busy fleet does not make it a flood", func(t *testing.T) {
		s := o.p.Acks.Open("node-2")
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for n := uint64(2); ; n++ {
				select {
				case <-stop:
					return
				default:
					_ = holds(s, "envoy/b", n%5+1)
				}
			}
		}()
		got := &told{}
		err := o.revoke(owner(t), &adminv1.RevokeRequest{Serial: o.issue(ca.ProfileWorkload, "spiffe://example.org/ns/retail/sa/db", "retail", "node-1"), WaitMillis: 200}, got.send)
		close(stop)
		<-stopped
		must(t, err)
		if n := len(got.all()); n > 2000 {
			t.Errorf("%d messages in 200ms", n)
		}
	})
}

func TestASerialMayBeAUniqueBeginning(t *testing.T) {
	o := newOffice(t)
	for range 17 { // two of them share their first digit
		o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	}
	records, _ := o.ListCertificates(owner(t), &adminv1.ListCertificatesRequest{})
	first := map[string]int{}
	for _, c := range records.Certificates {
		first[c.Serial[:1]]++
	}
	for digit, n := range first {
		_, err := o.serial(digit)
		if n > 1 && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "give more digits")) || n == 1 && err != nil {
			t.Errorf("%d certificates begin with %s: %v", n, digit, err)
		}
	}
	for _, tt := range []struct {
		prefix string
		kind   fault.Kind
	}{
		{"", fault.Invalid}, {"XYZ", fault.Invalid}, {"AB12", fault.Invalid}, {"ab-12", fault.Invalid}, {"../" + records.Certificates[0].Serial, fault.Invalid},
		{records.Certificates[0].Serial + "00", fault.NotFound},
	} {
		if _, err := o.serial(tt.prefix); !fault.Is(err, tt.kind) {
			t.Errorf("serial %q: %v, want %v", tt.prefix, err, tt.kind)
		}
	}
}

func TestARequestThatNamesNothingOrTooMuchIsRefused(t *testing.T) {
	o := newOffice(t)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	for name, req := range map[string]*adminv1.RevokeRequest{
		"nothing":              {},
		"two things":           {Serial: serial, SpiffeId: web},
		"no SPIFFE ID":         {SpiffeId: "https://example.org/web"},
		"another trust domain": {TrustDomain: "other.org", SpiffeId: web},
		"another's identity":   {SpiffeId: "spiffe://other.org/ns/a/sa/b"},
	} {
		if err := o.takeAway(owner(t), req); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if state, _ := o.p.Authority.State(); len(state.Revocations) != 0 {
		t.Errorf("revoked all the same: %v", state.Revocations)
	}
}

func TestABannedNodeLosesWhatItHoldsUntilTheBanIsLifted(t *testing.T) {
	o := newOffice(t)
	_, err := o.p.Registry.Admit(t.Context(), "join_token", node.Claim{Node: "node-1"})
	must(t, err)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	r, err := o.BanNode(owner(t), &adminv1.BanNodeRequest{Name: "node-1", Reason: "stolen"})
	must(t, err)
	if !r.Node.Banned || r.Node.BanReason != "stolen" || r.RevokedCertificates != 1 {
		t.Errorf("answered %v", r)
	}
	state, _ := o.p.Authority.State()
	if _, revoked := state.Revoked(serial); !revoked || !state.BlockedNodes["node-1"] {
		t.Error("its certificate is good, or it gets new ones")
	}
	if _, err := o.CreateToken(owner(t), &adminv1.CreateTokenRequest{Node: "node-1"}); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "unban") {
		t.Errorf("a token for a banned node: %v", err)
	}
	l := o.lifted(&adminv1.LiftRequest{Node: "node-1"})
	if !l.Done || !strings.Contains(l.Lifted, "legation token create --node node-1") {
		t.Errorf("what comes next is not told: %s", l.Lifted)
	}
	if state, _ := o.p.Authority.State(); state.BlockedNodes["node-1"] {
		t.Error("it is blocked still")
	}
	if _, err := o.CreateToken(owner(t), &adminv1.CreateTokenRequest{Node: "node-1"}); err != nil {
		t.Error(err)
	}
}

func TestABlockIsLiftedAndTheRevokedStayRevoked(t *testing.T) {
	o := newOffice(t)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	must(t, o.takeAway(owner(t), &adminv1.RevokeRequest{SpiffeId: web}))
	r, err := o.Status(owner(t), &adminv1.StatusRequest{})
	must(t, err)
	if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, "legation lift "+web) }) {
		t.Errorf("status does not tell of the block: %q", r.Problems)
	}
	if l := o.lifted(&adminv1.LiftRequest{SpiffeId: web}); !l.Done || len(l.Missing) > 0 {
		t.Errorf("nobody enforces it, and the last word is %v", l)
	}
	state, _ := o.p.Authority.State()
	if _, revoked := state.Revoked(serial); !revoked || state.Blocked[web] {
		t.Error("the certificate is good again, or the identity is blocked still")
	}
	o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	for _, req := range []*adminv1.LiftRequest{{SpiffeId: web}, {SpiffeId: "nonsense"}, {}, {Node: "nobody"}} {
		if err := o.lift(owner(t), req, func(*adminv1.LiftProgress) error { return nil }); err == nil {
			t.Errorf("lifted what is not blocked: %v", req)
		}
	}
}

// lifted lifts and returns the last word.
func (o *office) lifted(req *adminv1.LiftRequest) (last *adminv1.LiftProgress) {
	o.t.Helper()
	must(o.t, o.lift(owner(o.t), req, func(p *adminv1.LiftProgress) error { last = p; return nil }))
	return last
}

func TestALiftIsFollowedUntilTheIdentityIsServedAgain(t *testing.T) {
	o := newOffice(t)
	serial := o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	presents := func(s *acks.Session, subscriber, serial string) {
		must(t, holds(s, subscriber, 1))
		must(t, s.Apply(&nodev1.ReportRequest{Served: []*nodev1.ServedCertificate{{Subscriber: subscriber, SpiffeId: web, Serial: serial}}}))
	}
	one, gone := o.p.Acks.Open("node-1"), o.p.Acks.Open("node-2")
	presents(one, "envoy/a", serial)
	presents(one, "envoy/b", serial)
	presents(gone, "envoy/c", serial)
	must(t, holds(one, "sds/1/1", 1)) // presents what nobody has seen
	gone.Close()
	must(t, o.takeAway(owner(t), &adminv1.RevokeRequest{SpiffeId: web, WaitMillis: 1}))
	o.blocked.Store(&[]string{"node-1"})

	said, done := make(chan *adminv1.LiftProgress, 100), make(chan error, 1)
	go func() {
		done <- o.lift(owner(t), &adminv1.LiftRequest{SpiffeId: web, WaitMillis: 60_000}, func(p *adminv1.LiftProgress) error { said <- p; return nil })
	}()
	is := func(done bool, missing ...string) {
		t.Helper()
		if p := <-said; p.Done != done || !slices.Equal(p.Missing, missing) || p.CommittedNanos <= 0 {
			t.Fatalf("said %v, want %q missing", p, missing)
		}
	}
	is(false, "node-1 (the node)", "node-1/envoy/a", "node-1/envoy/b")
	o.blocked.Store(new([]string)) // nothing else wakes the wait
	is(false, "node-1/envoy/a", "node-1/envoy/b")
	presents(one, "envoy/b", o.issue(ca.ProfileWorkload, web, "retail", "node-1"))
	is(false, "node-1/envoy/a")
	presents(one, "envoy/a", o.issue(ca.ProfileWorkload, web, "retail", "node-1"))
	is(true)
	must(t, <-done)
}

func TestTheWaitForALiftIsBounded(t *testing.T) {
	o := newOffice(t)
	o.issue(ca.ProfileWorkload, web, "retail", "node-1")
	must(t, o.takeAway(owner(t), &adminv1.RevokeRequest{SpiffeId: web, WaitMillis: 1}))
	o.blocked.Store(&[]string{"node-1"})
	last := o.lifted(&adminv1.LiftRequest{SpiffeId: web, WaitMillis: 50})
	if !last.Done || !slices.Equal(last.Missing, []string{"node-1 (the node)"}) {
		t.Errorf("the last word is %v", last)
	}
	if state, _ := o.p.Authority.State(); state.Blocked[web] {
		t.Error("it is blocked still")
	}
}
