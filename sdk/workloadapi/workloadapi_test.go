package workloadapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/legation-io/legation/sdk/workloadapi"
)

// agent is a Workload API that a test scripts.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	answers chan *workload.X509SVIDResponse
	fail    chan error
}

func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 || md.Get("workload.spiffe.io")[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		select {
		case r := <-a.answers:
			if err := stream.Send(r); err != nil {
				return err
			}
		case err := <-a.fail:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *agent) serve(t *testing.T, path string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	return func() { server.Stop(); <-done }
}

func newAgent() *agent {
	return &agent{answers: make(chan *workload.X509SVIDResponse, 8), fail: make(chan error, 8)}
}

// recorder is a Handler that a test reads.
type recorder struct {
	updates chan *workloadapi.Context
	states  chan string
}

func (r *recorder) Updated(c *workloadapi.Context) { r.updates <- c }
func (r *recorder) StateChanged(s workloadapi.State, err error) {
	text := string(s)
	if err != nil {
		text += ": " + err.Error()
	}
	r.states <- text
}

func (r *recorder) want(t *testing.T, state string) string {
	t.Helper()
	select {
	case got := <-r.states:
		if !strings.HasPrefix(got, state) {
			t.Fatalf("state %q, want %s", got, state)
		}
		return got
	case <-time.After(10 * time.Second):
		t.Fatalf("no state %s", state)
		return ""
	}
}

func (r *recorder) update(t *testing.T) *workloadapi.Context {
	t.Helper()
	select {
	case c := <-r.updates:
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("no update")
		return nil
	}
}

func watch(t *testing.T, addr string) (*recorder, func() error) {
	t.Helper()
	r := &recorder{updates: make(chan *workloadapi.Context, 8), states: make(chan string, 64)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- workloadapi.Watch(ctx, addr, r) }()
	return r, func() error { cancel(); return <-done }
}

// answer is a well-formed response for an ID.
func answer(t *testing.T, id string) *workload.X509SVIDResponse {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{u}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{SpiffeId: id, X509Svid: leafDER, X509SvidKey: keyDER, Bundle: rootDER, Hint: "internal"}},
		Crl:   [][]byte{[]byte("a list")},
	}
}

func TestUpdatesCarrySVIDsBundlesAndCRLs(t *testing.T) {
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "s")
	a := newAgent()
	stop := a.serve(t, path)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+path)
	r, end := watch(t, "")
	r.want(t, "connecting")
	first := answer(t, "spiffe://example.org/a")
	first.FederatedBundles = map[string][]byte{"spiffe://other.example": first.Svids[0].Bundle}
	a.answers <- first
	c := r.update(t)
	r.want(t, "current")
	if len(c.SVIDs) != 1 || c.SVIDs[0].ID.String() != "spiffe://example.org/a" || c.SVIDs[0].Hint != "internal" {
		t.Errorf("SVIDs are %v", c.SVIDs)
	}
	if len(c.CRLs) != 1 || string(c.CRLs[0]) != "a list" {
		t.Errorf("CRLs are %q", c.CRLs)
	}
	for _, domain := range []string{"example.org", "other.example"} {
		b, ok := c.Bundles.Get(spiffeid.RequireTrustDomainFromString(domain))
		if !ok || len(b.X509Authorities()) != 1 {
			t.Errorf("the bundle of %s is missing", domain)
		}
	}
	second := answer(t, "spiffe://example.org/a")
	second.Crl = nil
	a.answers <- second
	if c := r.update(t); len(c.CRLs) != 0 {
		t.Errorf("CRLs are %q", c.CRLs)
	}
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch ended with %v", err)
	}
	stop()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
		runtime.Gosched()
	}
}

func TestItReconnectsToARestartedAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r, end := watch(t, "unix://"+path)
	r.want(t, "connecting")
	r.want(t, "unavailable")
	for range 2 {
		a := newAgent()
		a.answers <- answer(t, "spiffe://example.org/a")
		stop := a.serve(t, path)
		r.update(t)
		r.want(t, "current")
		stop()
		r.want(t, "unavailable")
	}
	_ = end()
}

func TestAProcessWithoutIdentityIsToldSoAndServedLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := newAgent()
	defer a.serve(t, path)()
	a.fail <- status.Error(codes.PermissionDenied, "no identity issued")
	r, end := watch(t, "unix://"+path)
	r.want(t, "connecting")
	if got := r.want(t, "no_identity"); !strings.Contains(got, "no identity issued") {
		t.Errorf("the reason is lost: %s", got)
	}
	a.answers <- answer(t, "spiffe://example.org/a")
	r.update(t)
	r.want(t, "current")
	_ = end()
}

func TestAnAnswerThatMakesNoSenseIsDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for name, bend := range map[string]func(*workload.X509SVIDResponse){
		"no SVID":              func(r *workload.X509SVIDResponse) { r.Svids = nil },
		"a broken certificate": func(r *workload.X509SVIDResponse) { r.Svids[0].X509Svid = []byte("junk") },
		"another key": func(r *workload.X509SVIDResponse) {
			r.Svids[0].X509SvidKey = answer(t, "spiffe://example.org/b").Svids[0].X509SvidKey
		},
		"an ID that the certificate is not": func(r *workload.X509SVIDResponse) { r.Svids[0].SpiffeId = "spiffe://example.org/b" },
		"a broken bundle":                   func(r *workload.X509SVIDResponse) { r.Svids[0].Bundle = []byte("junk") },
		"a federated bundle of no domain":   func(r *workload.X509SVIDResponse) { r.FederatedBundles = map[string][]byte{"Ex ample": nil} },
		// A37: federation never supplies our own domain's roots.
		"a federated bundle of our own domain": func(r *workload.X509SVIDResponse) {
			r.FederatedBundles = map[string][]byte{"spiffe://example.org": r.Svids[0].Bundle}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent()
			defer a.serve(t, path)()
			r, end := watch(t, "unix://"+path)
			r.want(t, "connecting")
			bad := answer(t, "spiffe://example.org/a")
			bend(bad)
			a.answers <- bad
			r.want(t, "malformed")
			a.answers <- answer(t, "spiffe://example.org/a")
			r.update(t)
			r.want(t, "current")
			_ = end()
		})
	}
}

func TestWhatIsWrongForeverEndsTheWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := newAgent()
	defer a.serve(t, path)()
	a.fail <- status.Error(codes.InvalidArgument, "not like this")
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for _, addr := range []string{"unix://" + path, "", "http://x", "unix:relative", "tcp://host:1"} {
		r := &recorder{updates: make(chan *workloadapi.Context, 8), states: make(chan string, 64)}
		if err := workloadapi.Watch(t.Context(), addr, r); err == nil {
			t.Errorf("%q: no error", addr)
		}
	}
}
