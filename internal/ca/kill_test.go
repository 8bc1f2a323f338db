package ca

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store/etcd"
)

// childEnv makes this test binary a replica that signs and revokes, telling
// each answer on its standard output, until it is killed.
const childEnv = "LEGATION_CA_TEST_CHILD"

// onDisk is a world whose store survives its process.
func onDisk(t testing.TB, dir string) (*world, func()) {
	t.Helper()
	kek, err := file.OpenKEK(durable.OS, filepath.Join(dir, "kek"), true)
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Open(context.Background(), etcd.Config{Dir: filepath.Join(dir, "etcd"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, store: s, kek: kek, clock: &clock.Skewed{}}, func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestKilledReplicaChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return // not a child
	}
	w, closeStore := onDisk(t, dir)
	defer closeStore()
	a := w.replica()
	w.run(a)
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	deadline := time.Now().Add(20 * time.Second)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; time.Now().Before(deadline); n++ {
				for _, r := range a.SignX509(context.Background(), []X509Request{requestFor(t, idOf(fmt.Sprintf("/w%d", i))), requestFor(t, idOf("/w"))}) {
					if r.Err != nil {
						t.Error(r.Err)
						return
					}
					say("signed %s", r.Serial)
					if n%5 == 4 {
						if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: r.Serial}); err != nil {
							t.Error(err)
							return
						}
						say("revoked %s", r.Serial)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A17: a replica that is killed with -9 at random instants under load, on the
// real store, loses nothing that it answered.
func TestA17KilledWithNineUnderLoad(t *testing.T) {
	rounds := 10
	if os.Getenv("LEGATION_LONG") != "" {
		rounds = 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	signed, revoked := map[string]bool{}, map[string]bool{}
	root := ""
	for round := range rounds {
		killOne(t, dir, time.Duration(random.IntN(300))*time.Millisecond, signed, revoked)

		w, closeStore := onDisk(t, dir)
		a := w.replica()
		if root == "" {
			root = a.BundleHash()
		}
		if a.BundleHash() != root {
			t.Error("the root changed")
		}
		inCRL := crlSerials(t, a)
		state, _ := a.State()
		for serial := range signed {
			if _, err := a.journal.BySerial(serial); err != nil {
				t.Errorf("round %d: a certificate left and is not known: %v", round, err)
			}
		}
		for serial := range revoked {
			if !inCRL[serial] {
				t.Errorf("round %d: %s was answered as revoked and is not in CRL %d", round, serial, state.CRL.Number)
			}
		}
		records, _ := a.journal.List(ledger.Filter{SPIFFEID: idOf("/w0").String()})
		for _, r := range records[:min(3, len(records))] {
			if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: r.Serial}); err != nil {
				t.Errorf("round %d: a recorded certificate cannot be revoked: %v", round, err)
			}
		}
		closeStore()
		if t.Failed() {
			return
		}
	}
	if len(signed) == 0 || len(revoked) == 0 {
		t.Errorf("%d signed, %d revoked: the test tested nothing", len(signed), len(revoked))
	}
	t.Logf("%d kills, %d signed, %d revoked", rounds, len(signed), len(revoked))
}

// killOne runs a child until some time after its first answer.
func killOne(t *testing.T, dir string, after time.Duration, signed, revoked map[string]bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledReplicaChild$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	var timer *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		verb, serial, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "signed":
			signed[serial] = true
		case "revoked":
			revoked[serial] = true
		default:
			t.Logf("child: %s", lines.Text())
			continue
		}
		if timer == nil {
			killed = true
			timer = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
	if !killed {
		t.Fatal("the child answered nothing")
	}
	timer.Stop()
}

// A full disk: issuing is refused with the reason, what was there is served.
func TestAStoreThatRefusesStopsIssuingOnly(t *testing.T) {
	w := newWorld(t)
	a := w.replica()
	_, r := sign(t, a, requestFor(t, idOf("/w")))
	full := fault.New(fault.Limited, "the store is full")
	w.failCommits(full)
	if got := a.SignX509(context.Background(), []X509Request{requestFor(t, idOf("/w"))})[0]; !fault.Is(got.Err, fault.Limited) || got.Chain != nil {
		t.Errorf("result %+v, want limited", got.Err)
	}
	if _, err := a.Revoke(context.Background(), RevokeRequest{Serial: r.Serial}); !fault.Is(err, fault.Limited) {
		t.Errorf("Revoke = %v, want limited", err)
	}
	if crlSerials(t, a)[r.Serial] {
		t.Error("a revocation that was not stored was published")
	}
	w.failCommits(nil)
	sign(t, a, requestFor(t, idOf("/w")))
}
