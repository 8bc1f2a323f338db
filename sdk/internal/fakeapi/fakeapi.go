// Package fakeapi is a Workload API for tests, over real gRPC on a Unix
// socket: it answers what the test says, changes its answer under open
// streams, and goes away and comes back.
package fakeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	workloadv1 "github.com/legation-io/legation/sdk/api/workload/v1"
	"github.com/legation-io/legation/sdk/internal/pkitest"
)

// Server is one Workload API. Its methods are safe for concurrent use.
type Server struct {
	t    testing.TB
	path string

	mu          sync.Mutex // guards what follows
	x509        *workload.X509SVIDResponse
	jwt         *workload.JWTBundlesResponse
	tokens      func(*workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error)
	revocations *workloadv1.RevocationSet
	err         error
	changed     chan struct{}
	calls       int
	stop        func()
}

// New returns a server on a socket that does not listen yet: Start does.
// Without an answer, callers wait.
func New(t testing.TB) *Server {
	s := &Server{t: t, path: t.TempDir() + "/s", changed: make(chan struct{})}
	t.Cleanup(s.Stop)
	return s
}

// Addr is what clients dial.
func (s *Server) Addr() string { return "unix://" + s.path }

// Path is that of the socket.
func (s *Server) Path() string { return s.path }

// Start serves; without extensions only what SPIFFE standardised, as SPIRE.
func (s *Server) Start(extensions bool) {
	s.t.Helper()
	l, err := net.Listen("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	g := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(g, api{s: s})
	if extensions {
		workloadv1.RegisterRevocationsServer(g, revoked{s: s})
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop = func() { g.Stop(); <-done }
}

// Stop goes away with all streams. What was set is kept for the next Start.
func (s *Server) Stop() {
	s.mu.Lock()
	stop := s.stop
	s.stop = nil
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Answer pushes an answer to whoever asks for X.509-SVIDs, now and later.
func (s *Server) Answer(r *workload.X509SVIDResponse) {
	s.change(func() { s.x509, s.err = r, nil })
}

// AnswerJWT pushes JWT bundles.
func (s *Server) AnswerJWT(r *workload.JWTBundlesResponse) {
	s.change(func() { s.jwt, s.err = r, nil })
}

// Tokens is what FetchJWTSVID answers.
func (s *Server) Tokens(f func(*workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error)) {
	s.change(func() { s.tokens = f })
}

// Revoke pushes a set of revocations.
func (s *Server) Revoke(r *workloadv1.RevocationSet) { s.change(func() { s.revocations = r }) }

// Fail ends every stream, and those to come until the next Answer, with a
// status.
func (s *Server) Fail(code codes.Code, message string) {
	s.change(func() { s.err = status.Error(code, message) })
}

// Calls is how many calls there were.
func (s *Server) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// push sends what current returns, and again whenever that is another.
func push[T any](s *Server, ctx context.Context, current func() (*T, error), send func(*T) error) error {
	if md, _ := metadata.FromIncomingContext(ctx); !slices.Equal(md.Get("workload.spiffe.io"), []string{"true"}) {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	s.mu.Lock()
	s.calls++
	s.mu.Unlock()
	var last *T
	for {
		s.mu.Lock()
		next, err := current()
		changed := s.changed
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if next != nil && next != last {
			if err := send(next); err != nil {
				return err
			}
			last = next
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type api struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	s *Server
}

func (a api) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return push(a.s, stream.Context(), func() (*workload.X509SVIDResponse, error) { return a.s.x509, a.s.err }, stream.Send)
}

func (a api) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return push(a.s, stream.Context(), func() (*workload.JWTBundlesResponse, error) { return a.s.jwt, a.s.err }, stream.Send)
}

func (a api) FetchJWTSVID(_ context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	a.s.mu.Lock()
	f := a.s.tokens
	a.s.mu.Unlock()
	if f == nil {
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return f(r)
}

type revoked struct {
	workloadv1.UnimplementedRevocationsServer
	s *Server
}

func (r revoked) Watch(_ *workloadv1.WatchRevocationsRequest, stream grpc.ServerStreamingServer[workloadv1.RevocationSet]) error {
	return push(r.s, stream.Context(), func() (*workloadv1.RevocationSet, error) { return r.s.revocations, nil }, stream.Send)
}

// X509 is an answer with one SVID for each certificate, and the roots and
// lists of d as they are now.
func X509(t testing.TB, d *pkitest.Domain, certs ...*tls.Certificate) *workload.X509SVIDResponse {
	t.Helper()
	r := &workload.X509SVIDResponse{Crl: d.CRLs()}
	trust := d.Trust()
	for domain, roots := range trust.Roots {
		if domain != d.TrustDomain {
			if r.FederatedBundles == nil {
				r.FederatedBundles = map[string][]byte{}
			}
			r.FederatedBundles[domain.IDString()] = concat(roots)
		}
	}
	for _, c := range certs {
		key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		r.Svids = append(r.Svids, &workload.X509SVID{
			SpiffeId: c.Leaf.URIs[0].String(), X509Svid: slices.Concat(c.Certificate...), X509SvidKey: key,
			Bundle: concat(trust.Roots[d.TrustDomain]),
		})
	}
	return r
}

func concat(certs []*x509.Certificate) []byte {
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	return all
}

// Example is a running server for an example, which has no testing.T: it gives
// its caller these identities, and revokes nothing.
func Example(ids ...string) (addr string, stop func()) {
	t := &example{}
	s := New(t)
	d := pkitest.New(t, spiffeid.RequireFromString(ids[0]).TrustDomain().Name(), nil)
	certs := make([]*tls.Certificate, len(ids))
	for n, id := range ids {
		certs[n] = d.Issue(spiffeid.RequireFromString(id).Path(), nil)
	}
	s.Revoke(&workloadv1.RevocationSet{})
	s.Answer(X509(t, d, certs...))
	s.Start(true)
	return s.Addr(), t.end
}

// example is the testing.TB of an example: what would fail a test panics.
type example struct {
	testing.TB
	cleanup []func()
}

func (e *example) Helper()          {}
func (e *example) Cleanup(f func()) { e.cleanup = append(e.cleanup, f) }
func (e *example) Fatal(args ...any) {
	panic(fmt.Sprint(args...))
}

func (e *example) TempDir() string {
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		panic(err)
	}
	e.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (e *example) end() {
	for _, f := range slices.Backward(e.cleanup) {
		f()
	}
}
