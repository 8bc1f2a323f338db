package registry

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/attest/node"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var td = spiffeid.RequireTrustDomainFromString("example.org")

func newRegistry(t *testing.T) (*Registry, *memory.Store) {
	t.Helper()
	st := memory.New()
	t.Cleanup(func() { st.Close() })
	return New(Params{Store: st, TrustDomain: td}), st
}

func run(t *testing.T, r *Registry) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func admit(t *testing.T, r *Registry, name, serial string) Record {
	t.Helper()
	rec, err := r.Admit(t.Context(), "test", node.Claim{Node: name})
	if err != nil {
		t.Fatal(err)
	}
	rec, err = r.Issued(t.Context(), rec, "", serial, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func renew(t *testing.T, r *Registry, name, presented, serial string) error {
	t.Helper()
	rec, err := r.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Issued(t.Context(), rec, presented, serial, time.Now().Add(time.Hour))
	return err
}

func TestWhichCertificatesRenew(t *testing.T) {
	r, _ := newRegistry(t)
	admit(t, r, "web-1", "01")
	steps := []struct {
		name, presented, serial string
		ok                      bool
	}{
		{"the last issued renews", "01", "02", true},
		{"the one it superseded renews, because the answer may have been lost", "01", "03", true},
		{"the one that was lost does not", "02", "04", false},
		{"the last issued renews again", "03", "05", true},
		{"one superseded twice does not", "01", "06", false},
		{"a foreign one does not", "ff", "07", false},
	}
	for _, s := range steps {
		if err := renew(t, r, "web-1", s.presented, s.serial); (err == nil) != s.ok || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestAttestingAgainEndsEarlierCertificates(t *testing.T) {
	r, _ := newRegistry(t)
	admit(t, r, "web-1", "01")
	admit(t, r, "web-1", "02")
	if err := renew(t, r, "web-1", "01", "03"); !fault.Is(err, fault.Denied) {
		t.Fatalf("a certificate of an earlier attestation: %v", err)
	}
}

func TestBannedBetweenSigningAndRecordingGetsNothing(t *testing.T) {
	r, _ := newRegistry(t)
	rec, err := r.Admit(t.Context(), "test", node.Claim{Node: "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Ban(t.Context(), "web-1", "stolen", "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Issued(t.Context(), rec, "", "01", time.Now()); !fault.Is(err, fault.Denied) {
		t.Fatalf("%v", err)
	}
}

func TestBanAndLift(t *testing.T) {
	r, _ := newRegistry(t)
	admit(t, r, "web-1", "01")
	if _, err := r.Ban(t.Context(), "web-2", "", "alice"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("banning a node nobody knows: %v", err)
	}
	rec, err := r.Ban(t.Context(), "web-1", "stolen laptop", "alice")
	if err != nil || !rec.Banned || rec.BannedBy != "alice" {
		t.Fatalf("%+v, %v", rec, err)
	}
	err = renew(t, r, "web-1", "01", "02")
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "stolen laptop") {
		t.Fatalf("renewing while banned: %v", err)
	}
	if _, err := r.Admit(t.Context(), "test", node.Claim{Node: "web-1"}); !fault.Is(err, fault.Denied) {
		t.Fatalf("attesting while banned: %v", err)
	}
	if _, err := r.Lift(t.Context(), "web-1", "alice"); err != nil {
		t.Fatal(err)
	}
	if err := renew(t, r, "web-1", "01", "02"); err != nil {
		t.Fatalf("after the ban was lifted: %v", err)
	}
	if _, err := r.Lift(t.Context(), "web-1", "alice"); !fault.Is(err, fault.Invalid) {
		t.Fatalf("lifting twice: %v", err)
	}
}

func TestOtherReplicasSeeABanAtOnce(t *testing.T) {
	a, st := newRegistry(t)
	b := New(Params{Store: st, TrustDomain: td})
	run(t, b)
	admit(t, a, "web-1", "01")
	deadline := time.After(time.Minute)
	wait := func(what string, ok func(Record, bool) bool) {
		t.Helper()
		for {
			rec, exists, changed := b.Lookup("web-1")
			if ok(rec, exists) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%s: not seen; have %+v", what, rec)
			}
		}
	}
	wait("attested", func(r Record, ok bool) bool { return ok && r.Serial == "01" })
	if _, err := a.Ban(t.Context(), "web-1", "x", "y"); err != nil {
		t.Fatal(err)
	}
	wait("banned", func(r Record, ok bool) bool { return ok && r.Banned })
	if _, err := st.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: a.key("web-1"), Delete: true}}}); err != nil {
		t.Fatal(err)
	}
	wait("deleted", func(r Record, ok bool) bool { return !ok })
	if records, synced, _ := b.State(); len(records) != 0 || !synced {
		t.Fatalf("%v, %v", records, synced)
	}
}

func TestRecordOfANewerProgramIsRefused(t *testing.T) {
	r, st := newRegistry(t)
	_, err := st.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: r.key("web-1"), Value: store.EncodeValue(Kind, 2, []byte("{}"))}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get(t.Context(), "web-1"); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Fatalf("%v", err)
	}
	if _, err := r.Admit(t.Context(), "test", node.Claim{Node: "web-1"}); err == nil {
		t.Fatal("it was overwritten")
	}
}
