package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testTD = spiffeid.RequireTrustDomainFromString("example.org")

// world is a store with the replicas on it.
type world struct {
	t     testing.TB
	store store.Store
	kek   *file.KEK
	clock *clock.Skewed
	life  Lifetimes
}

func newWorld(t testing.TB) *world {
	t.Helper()
	kek, err := file.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, store: memory.New(), kek: kek, clock: &clock.Skewed{}}
}

// replica opens journal and authority as a fresh process would.
func (w *world) replica() *Authority {
	w.t.Helper()
	a, err := w.open(func(string) {})
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) open(failpoint func(string)) (*Authority, error) {
	keys, err := file.New(file.Params{Store: w.store, TrustDomain: testTD.Name(), KEK: w.kek})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	j, err := ledger.Open(ctx, ledger.Params{Store: w.store, TrustDomain: testTD.Name(), Clock: w.clock})
	if err != nil {
		return nil, err
	}
	return open(ctx, Params{Store: w.store, Custody: keys, Journal: j, Clock: w.clock, TrustDomain: testTD, Lifetimes: w.life}, failpoint)
}

// run runs replicas until the test ends.
func (w *world) run(replicas ...*Authority) {
	w.t.Helper()
	for _, a := range replicas {
		for _, f := range []func(context.Context) error{a.Run, a.journal.Run} {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = f(ctx) }()
			w.t.Cleanup(func() { cancel(); <-done })
		}
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newCSR makes a request with the given URI names.
func newCSR(t testing.TB, key crypto.Signer, uris ...string) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func idOf(path string) spiffeid.ID { return spiffeid.RequireFromPath(testTD, path) }

// request is a workload's, with a new key.
func requestFor(t testing.TB, id spiffeid.ID) X509Request {
	t.Helper()
	return X509Request{
		Profile: ProfileWorkload, CSR: newCSR(t, newKey(t), id.String()), ID: id,
		Namespace: "default", Entry: "default/web", Node: "node-1", Instance: "uid/1000",
	}
}

// sign signs one request that must be good.
func sign(t testing.TB, a *Authority, req X509Request) (*x509.Certificate, X509Result) {
	t.Helper()
	result := a.SignX509(context.Background(), []X509Request{req})[0]
	if result.Err != nil {
		t.Fatal(result.Err)
	}
	cert, err := x509.ParseCertificate(result.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert, result
}

// crlSerials reads the serials of the issuing CA's list and checks the list.
func crlSerials(t testing.TB, a *Authority) map[string]bool {
	t.Helper()
	state, _ := a.State()
	issuing, root := a.Chain()
	serials := make(map[string]bool)
	for i, issuer := range []*x509.Certificate{issuing, root} {
		list, err := x509.ParseRevocationList(state.CRL.Lists[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			t.Fatal(err)
		}
		if !list.NextUpdate.Equal(issuer.NotAfter) || list.ThisUpdate.After(a.guard.Now()) {
			t.Errorf("list %d is of %s, next %s; its CA ends %s", i, list.ThisUpdate, list.NextUpdate, issuer.NotAfter)
		}
		if i == 0 && list.Number.Uint64() != state.CRL.Number {
			t.Errorf("CRL number %s in the list, %d beside it", list.Number, state.CRL.Number)
		}
		for _, e := range list.RevokedCertificateEntries {
			serials[serialHex(e.SerialNumber)] = true
		}
	}
	return serials
}

// failCommits makes the store refuse every commit.
func (w *world) failCommits(err error) {
	w.t.Helper()
	m, ok := w.store.(*memory.Store)
	if !ok {
		w.t.Fatalf("a %T cannot be made to fail", w.store)
	}
	if err == nil {
		m.FailCommits(nil)
		return
	}
	m.FailCommits(func(store.Txn) error { return err })
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}
