package workloadapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/latest"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

const domain = "example.org"

// agent is everything behind one socket, with a control plane in process.
type agent struct {
	t      testing.TB
	socket string
	m      *svid.Manager
	view   latest.Value[*upstream.View]
	ca     *authority
	served *Server
	keeper Objects

	mu        sync.Mutex // guards what follows
	delivered map[string]map[string]uint64
	gone      []string
}

// authority signs X.509-SVIDs, JWT-SVIDs and CRLs of one trust domain.
type authority struct {
	domain string
	key    *ecdsa.PrivateKey
	root   *x509.Certificate
	kid    string
	old    bool       // it does not know further claims
	mu     sync.Mutex // guards serial
	serial int64
}

func newAuthority(t testing.TB, domain, kid string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain}, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{domain: domain, key: key, root: root, kid: kid, serial: 100}
}

func (a *authority) bundle(t testing.TB) *nodev1.Bundle {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &a.key.PublicKey, KeyID: a.kid, Use: "jwt-svid", Algorithm: "ES256"}}}
	jwks, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return &nodev1.Bundle{TrustDomain: a.domain, X509Roots: [][]byte{a.root.Raw}, Jwks: jwks}
}

func (a *authority) crl(t testing.TB, number int64, serials ...int64) *nodev1.CRL {
	tmpl := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.root, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &nodev1.CRL{Authority: "default", Number: uint64(number), Lists: [][]byte{der}}
}

func (a *authority) SignX509(_ context.Context, items []*nodev1.X509Item) ([]*nodev1.X509Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*nodev1.X509Result
	for _, i := range items {
		csr, err := x509.ParseCertificateRequest(i.Csr)
		if err != nil {
			return nil, err
		}
		a.serial++
		tmpl := &x509.Certificate{
			SerialNumber: big.NewInt(a.serial), URIs: csr.URIs, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(time.Hour),
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, a.root, csr.PublicKey, a.key)
		if err != nil {
			return nil, err
		}
		all = append(all, &nodev1.X509Result{Chain: [][]byte{der}})
	}
	return all, nil
}

func (a *authority) SignJWT(_ context.Context, r *nodev1.SignJWTRequest) (*nodev1.SignJWTResponse, error) {
	exp := time.Now().Add(5 * time.Minute)
	token, err := a.token(map[string]any{"sub": r.SpiffeId, "aud": r.Audience, "exp": exp.Unix(), "iat": time.Now().Unix(), "ext": r.Ext})
	return &nodev1.SignJWTResponse{Token: token, ExpiresAtUnix: exp.Unix(), Ext: len(r.Ext) > 0 && !a.old}, err
}

func (a *authority) token(claims map[string]any) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.key, KeyID: a.kid}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(claims).Serialize()
}

func (a *authority) Explain(context.Context, *nodev1.ExplainRequest) (*nodev1.ExplainResponse, error) {
	return &nodev1.ExplainResponse{}, nil
}

func (a *agent) View() (*upstream.View, <-chan struct{}) { return a.view.Load() }

func selfSelector() string { return "unix:uid:" + strconv.Itoa(os.Geteuid()) }

func webEntry() *nodev1.Entry {
	return &nodev1.Entry{Name: "default/web", Namespace: "default", SpiffeId: "spiffe://example.org/ns/default/sa/web", Selectors: []string{selfSelector()}, Hint: "internal"}
}

// serve starts everything; entries are what the node has at first.
func serve(t testing.TB, limits Limits, entries ...*nodev1.Entry) *agent {
	t.Helper()
	a := &agent{t: t, ca: newAuthority(t, domain, "key-1"), delivered: map[string]map[string]uint64{}}
	view := &upstream.View{
		TrustDomain: domain, Synced: true, Entries: map[string]*nodev1.Entry{},
		Bundles: map[string]*nodev1.Bundle{domain: a.ca.bundle(t)},
		CRLs:    map[string]*nodev1.CRL{"default": a.ca.crl(t, 1)},
	}
	for _, e := range entries {
		view.Entries[e.Name] = e
	}
	a.view.Store(view)
	a.m = svid.New(svid.Params{Views: a, Signer: a.ca, HoldOff: time.Second}) // five times that to sign, on a busy machine
	attestor := workload.NewAttestor(workload.Params{Want: a.m.Want})
	s := New(Params{Manager: a.m, Views: a, Objects: a, Attestor: attestor, TrustDomain: spiffeid.RequireTrustDomainFromString(domain), Limits: limits,
		OnDelivered: func(subscriber, id string, crl map[string]uint64) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.delivered[subscriber+" "+id] = crl
		},
		OnGone: func(subscriber string) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.gone = append(a.gone, subscriber)
		},
	})
	a.served = s
	server := grpc.NewServer(grpc.Creds(workload.NewCredentials(attestor)))
	s.Register(server)
	a.socket = filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.m.Run(ctx) })
	running.Go(func() { attestor.Run(ctx) })
	running.Go(func() { server.Serve(l) })
	t.Cleanup(func() {
		server.Stop()
		cancel()
		running.Wait()
	})
	return a
}

func (a *agent) change(f func(v *upstream.View)) {
	v := *a.view.Get()
	v.Entries = maps.Clone(v.Entries)
	v.Bundles = maps.Clone(v.Bundles)
	v.CRLs = maps.Clone(v.CRLs)
	f(&v)
	a.view.Store(&v)
}

func (a *agent) client() pb.SpiffeWorkloadAPIClient {
	conn, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	return pb.NewSpiffeWorkloadAPIClient(conn)
}

func (a *agent) isGone(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.gone) >= n
}

// secure has the header that every call needs, and a deadline.
func secure(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

func (a *agent) GetObject(ctx context.Context, r *nodev1.GetObjectRequest) (*nodev1.GetObjectResponse, error) {
	return a.keeper.GetObject(ctx, r)
}

func (a *agent) PutObject(ctx context.Context, r *nodev1.PutObjectRequest) (*nodev1.PutObjectResponse, error) {
	return a.keeper.PutObject(ctx, r)
}

func (a *agent) DeleteObject(ctx context.Context, r *nodev1.DeleteObjectRequest) (*nodev1.DeleteObjectResponse, error) {
	return a.keeper.DeleteObject(ctx, r)
}

func (a *agent) ListObjects(ctx context.Context, r *nodev1.ListObjectsRequest) (*nodev1.ListObjectsResponse, error) {
	return a.keeper.ListObjects(ctx, r)
}
