package workloadapi_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
	"github.com/legation-io/legation/sdk/internal/fakeapi"
	"github.com/legation-io/legation/sdk/internal/pkitest"
	"github.com/legation-io/legation/sdk/workloadapi"
)

// quick is a configuration that tries again at once.
func quick(api *fakeapi.Server, log *fakeapi.Log) workloadapi.Config {
	return workloadapi.Config{
		Addr: api.Addr(), Backoff: workloadapi.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func run(t *testing.T, c workloadapi.Config) *workloadapi.Source {
	t.Helper()
	s, err := workloadapi.NewSource(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

func snapshot(t *testing.T, s identity.Source) *identity.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	snap, err := identity.Wait(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func judge(t *testing.T, trust *chaincheck.Trust, ders [][]byte) error {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	_, err := chaincheck.NewVerifier(chaincheck.VerifierConfig{Usage: chaincheck.Server}).Verify(t.Context(), trust, chain, nil)
	return err
}

func TestTheSourceFollowsTheWorkloadAPI(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	defer api.Stop()
	own, peer := d.Issue("/a", nil), d.Issue("/peer", nil)
	api.Revoke(&workloadv1.RevocationSet{})
	api.Answer(fakeapi.X509(t, d, own))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := workloadapi.Open(ctx, quick(api, log))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	snap, changed, err := s.Current()
	if err != nil || snap.ID != d.ID("/a") || !snap.Certificate.Leaf.Equal(own.Leaf) || snap.Trust.Denied == nil {
		t.Fatalf("snapshot %+v, error %v", snap, err)
	}
	if err := judge(t, snap.Trust, peer.Certificate); err != nil {
		t.Fatalf("a good peer: %v", err)
	}

	// By identity, through the deny set.
	api.Revoke(&workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{{SpiffeId: d.ID("/peer").String(), Reason: "demo"}}})
	<-changed
	revoked := &chaincheck.Error{Cause: chaincheck.Revoked}
	eventually(t, "a peer whose identity was taken back is refused", func() bool { return errors.Is(judge(t, snapshot(t, s).Trust, peer.Certificate), revoked) })
	api.Revoke(&workloadv1.RevocationSet{})
	eventually(t, "the lift is seen", func() bool { return judge(t, snapshot(t, s).Trust, peer.Certificate) == nil })

	// By serial, through the CRL.
	d.Revoke(peer.Leaf)
	api.Answer(fakeapi.X509(t, d, own))
	eventually(t, "the CRL is seen", func() bool { return errors.Is(judge(t, snapshot(t, s).Trust, peer.Certificate), revoked) })

	// Renewed.
	next := d.Issue("/a", nil)
	api.Answer(fakeapi.X509(t, d, next))
	eventually(t, "the renewed certificate is presented", func() bool { return snapshot(t, s).Certificate.Leaf.Equal(next.Leaf) })
	if err := s.Run(ctx); err == nil {
		t.Error("a second Run ran")
	}
}

// TestALiftedIdentityComesBackAtOnce: whoever was refused hears from the deny
// set, and does not wait until its turn to ask again.
func TestALiftedIdentityComesBackAtOnce(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	defer api.Stop()
	api.Revoke(&workloadv1.RevocationSet{})
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	c := quick(api, log)
	c.Backoff = workloadapi.Backoff{Min: time.Hour, Max: time.Hour}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := workloadapi.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	api.Fail(codes.PermissionDenied, "it is revoked and blocked until lifted")
	api.Revoke(&workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{{SpiffeId: d.ID("/a").String(), Reason: "demo"}}})
	eventually(t, "it is refused", func() bool { return s.Status().State == workloadapi.NoIdentity && s.Status().Denials == 1 })
	next := d.Issue("/a", nil)
	api.Answer(fakeapi.X509(t, d, next))
	api.Revoke(&workloadv1.RevocationSet{})
	eventually(t, "it has its identity back", func() bool {
		return s.Status().State == workloadapi.Current && snapshot(t, s).Certificate.Leaf.Equal(next.Leaf)
	})
}

func TestASPIRESocketIsServedQuietly(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(false)
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	s := run(t, quick(api, log))
	if snap := snapshot(t, s); snap.Trust.Denied != nil {
		t.Error("a deny set appeared from nowhere")
	}
	if st := s.Status(); st.Denials != -1 || st.State != workloadapi.Current {
		t.Errorf("status %+v", st)
	}
	if n := log.Count("WARN") + log.Count("ERROR"); n != 0 {
		t.Errorf("%d warnings and errors", n)
	}
	// Another agent may answer on the same socket later.
	api.Stop()
	eventually(t, "the agent is seen to be away", func() bool { return s.Status().State == workloadapi.Unavailable })
	api.Revoke(&workloadv1.RevocationSet{Revocations: []*workloadv1.Revocation{{SpiffeId: "spiffe://example.org/x"}}})
	api.Start(true)
	eventually(t, "the deny set is joined", func() bool { return snapshot(t, s).Trust.Denied != nil && s.Status().Denials == 1 })
}

func TestGoneAtStartLaterAndForever(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	s := run(t, quick(api, log))
	eventually(t, "the state says so", func() bool { return s.Status().State == workloadapi.Unavailable })
	if _, _, err := s.Current(); err == nil || !strings.Contains(err.Error(), api.Path()) {
		t.Errorf("gone at start: %v does not name the socket", err)
	}
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	api.Start(true)
	first := snapshot(t, s)
	for range 3 {
		api.Stop()
		eventually(t, "it is seen to be away", func() bool { return s.Status().State == workloadapi.Unavailable })
		if snap := snapshot(t, s); snap.Certificate != first.Certificate {
			t.Error("the last certificate is not served any more")
		}
		api.Start(true)
		eventually(t, "it is seen to be back", func() bool { return s.Status().State == workloadapi.Current })
	}
	api.Stop()
	// For ever: in 50 attempts no more is said than in one.
	eventually(t, "it is away", func() bool { return s.Status().State == workloadapi.Unavailable })
	if state, since, err := s.State(); state != workloadapi.Unavailable || time.Since(since) > time.Minute || err == nil {
		t.Errorf("state %s since %s: %v", state, since, err)
	}
	api.Fail(codes.Unavailable, "going down")
	api.Start(true)
	calls := api.Calls()
	eventually(t, "it tries again", func() bool { return api.Calls() > calls+5 })
	warned := log.Count("nothing for us") // said before the next attempt
	eventually(t, "it tried again and again", func() bool { return api.Calls() > calls+50 })
	if now := log.Count("nothing for us"); now != warned {
		t.Errorf("an unchanged state is logged %d times more", now-warned)
	}
}

func TestAnAgentThatRefusesIsNotAskedAgain(t *testing.T) {
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(false)
	api.Fail(codes.InvalidArgument, "not like this")
	s, err := workloadapi.NewSource(quick(api, log))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	eventually(t, "the state says so", func() bool { return s.Status().State == workloadapi.Unavailable })
	if _, _, err := s.Current(); err == nil || !strings.Contains(err.Error(), "not like this") {
		t.Errorf("%v does not say why", err)
	}
	s.Close()
	if err := <-done; err == nil || api.Calls() != 1 {
		t.Errorf("Run ended with %v after %d calls (SPIFFE Workload Endpoint 6: not to be retried)", err, api.Calls())
	}
}

func TestTheSourceKeepsTheLastGoodAnswer(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	good := fakeapi.X509(t, d, d.Issue("/a", nil))
	api.Answer(good)
	c := quick(api, log)
	registry := prometheus.NewRegistry()
	c.Registerer = registry
	s := run(t, c)
	first := snapshot(t, s)
	for n := range 3 {
		bad := fakeapi.X509(t, d, d.Issue("/a", nil))
		bad.Svids[0].X509Svid = []byte{byte(n), 1, 2, 3}
		api.Answer(bad)
		eventually(t, "it is counted", func() bool { return s.Status().Malformed == uint64(n+1) })
	}
	if st := s.Status(); st.State != workloadapi.Malformed || st.Err == nil {
		t.Errorf("status %+v", st)
	}
	if snapshot(t, s) != first {
		t.Error("the last good answer is not served any more")
	}
	eventually(t, "each is logged", func() bool { return log.Count("makes no sense") == 3 })
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP legation_workloadapi_malformed_total Answers, or parts of them, that made no sense and were dropped.
# TYPE legation_workloadapi_malformed_total counter
legation_workloadapi_malformed_total 3
# HELP legation_workloadapi_state 1 for the state in which the subscription to the Workload API is.
# TYPE legation_workloadapi_state gauge
legation_workloadapi_state{state="connecting"} 0
legation_workloadapi_state{state="current"} 0
legation_workloadapi_state{state="malformed"} 1
legation_workloadapi_state{state="no_identity"} 0
legation_workloadapi_state{state="unavailable"} 0
`), "legation_workloadapi_malformed_total", "legation_workloadapi_state"); err != nil {
		t.Error(err)
	}
	if _, err := workloadapi.NewSource(c); err == nil || !strings.Contains(err.Error(), "WrapRegistererWith") {
		t.Errorf("a second source in one registry: %v", err)
	}
	api.Answer(fakeapi.X509(t, d, d.Issue("/a", nil)))
	eventually(t, "it recovers", func() bool { return s.Status().State == workloadapi.Current })
}

// untilRefused is a context that ends when the agent was asked for the second
// time: its first answer was taken in.
func untilRefused(t *testing.T, api *fakeapi.Server) (ctx context.Context, wait func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		defer cancel()
		for end := time.Now().Add(time.Minute); api.Calls() < 3 && time.Now().Before(end); { // one may be for revocations
			time.Sleep(time.Millisecond)
		}
	})
	return ctx, done.Wait
}

func TestOpenSaysWhatItWaitedFor(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	api, log := fakeapi.New(t), &fakeapi.Log{}
	api.Start(true)
	defer api.Stop()
	api.Fail(codes.PermissionDenied, "no identity issued: no entry matches")
	ctx, refused := untilRefused(t, api)
	c := quick(api, log)
	registry := prometheus.NewRegistry()
	c.Registerer = registry
	_, err := workloadapi.Open(ctx, c)
	refused()
	if err == nil || !strings.Contains(err.Error(), "no entry matches") || !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not say what it waited for", err)
	}
	if n, err := testutil.GatherAndCount(registry); n != 0 || err != nil {
		t.Errorf("%d metrics are left behind, %v", n, err)
	}
	if _, err := workloadapi.Open(ctx, workloadapi.Config{Addr: "ftp://x"}); err == nil {
		t.Error("an address that cannot be was taken")
	}
}

func TestCloseBeforeRun(t *testing.T) {
	s, err := workloadapi.NewSource(workloadapi.Config{Addr: "unix:///nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.Run(t.Context()); err != nil {
		t.Errorf("Run after Close: %v", err)
	}
}

// FuzzAnswer: no answer panics, and none is taken that is not whole.
func FuzzAnswer(f *testing.F) {
	d := pkitest.New(f, "example.org", nil)
	r := fakeapi.X509(f, d, d.Issue("/a", nil))
	item := r.Svids[0]
	f.Add(item.SpiffeId, item.X509Svid, item.X509SvidKey, item.Bundle, "spiffe://other.example", item.Bundle)
	f.Add(item.SpiffeId, item.X509Svid, item.X509SvidKey, item.Bundle, "spiffe://example.org", item.Bundle)
	f.Add("", []byte{}, []byte{}, []byte{}, "", []byte{})
	f.Fuzz(func(t *testing.T, id string, cert, key, bundle []byte, domain string, foreign []byte) {
		c, err := workloadapi.ParseForTest(&workload.X509SVIDResponse{
			Svids:            []*workload.X509SVID{{SpiffeId: id, X509Svid: cert, X509SvidKey: key, Bundle: bundle}},
			FederatedBundles: map[string][]byte{domain: foreign},
		})
		if err != nil {
			return
		}
		if len(c.SVIDs) != 1 || c.SVIDs[0].PrivateKey == nil || c.SVIDs[0].ID.String() != id || c.Bundles.Len() != 2 {
			t.Errorf("%+v", c)
		}
	})
}

func TestTheKeysBytesAreWiped(t *testing.T) {
	d := pkitest.New(t, "example.org", nil)
	r := fakeapi.X509(t, d, d.Issue("/a", nil), d.Issue("/b", nil))
	if _, err := workloadapi.ParseForTest(r); err != nil {
		t.Fatal(err)
	}
	for _, item := range r.Svids {
		if !bytes.Equal(item.X509SvidKey, make([]byte, len(item.X509SvidKey))) {
			t.Error("the key's bytes are still there")
		}
	}
}
