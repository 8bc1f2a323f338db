package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/acks"
	"github.com/legation-io/legation/internal/attest/node/jointoken"
	"github.com/legation-io/legation/internal/attest/node/registry"
	"github.com/legation-io/legation/internal/ca"
	"github.com/legation-io/legation/internal/ca/custody/file"
	"github.com/legation-io/legation/internal/callers"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/ledger"
	"github.com/legation-io/legation/internal/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var domain = spiffeid.RequireTrustDomainFromString("example.org")

// office is the door with the real parts behind it, over a store in memory.
type office struct {
	*Server
	t     *testing.T
	clock *clock.Skewed
	here  []Presence
	// blocked are the nodes that have not heard of a lift.
	blocked atomic.Pointer[[]string]
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, clock: &clock.Skewed{}}
	o.blocked.Store(new([]string))
	st := memory.New()
	t.Cleanup(func() { _ = st.Close() })
	kek, err := file.OpenKEK(durable.OS, filepath.Join(t.TempDir(), "kek"), true)
	must(t, err)
	keys, err := file.New(file.Params{Store: st, TrustDomain: domain.Name(), KEK: kek})
	must(t, err)
	journal, err := ledger.Open(t.Context(), ledger.Params{Store: st, TrustDomain: domain.Name(), Clock: o.clock})
	must(t, err)
	authority, err := ca.Open(t.Context(), ca.Params{Store: st, Custody: keys, Journal: journal, Clock: o.clock, TrustDomain: domain})
	must(t, err)
	declared, err := catalog.Open(t.Context(), catalog.Params{Store: st, TrustDomain: domain, Clock: o.clock})
	must(t, err)
	nodes := registry.New(registry.Params{Store: st, TrustDomain: domain, Clock: o.clock})
	for _, run := range []func(context.Context) error{journal.Run, authority.Run, declared.Run, nodes.Run} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	o.Server = New(Params{
		TrustDomain: domain, Catalog: declared, Authority: authority, Journal: journal, Registry: nodes,
		Tokens:    jointoken.New(jointoken.Params{Store: st, TrustDomain: domain, Clock: o.clock}),
		Connected: func() []Presence { return o.here }, StillBlocked: func(string) []string { return *o.blocked.Load() }, Acks: acks.New(acks.Params{}), Engine: distribute.New(distribute.Params{}),
		Store: st, Clock: o.clock, Log: slog.New(slog.DiscardHandler), Version: "test", Started: time.Now(),
	})
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// owner is whoever sits at the admin socket.
func owner(t testing.TB) context.Context {
	return callers.NewContext(t.Context(), callers.Identity{Class: callers.Owner})
}

// operator holds one role in one namespace.
func operator(t testing.TB, role callers.Role, namespace string) context.Context {
	return callers.NewContext(t.Context(), callers.Identity{
		Class: callers.Operator, SPIFFEID: spiffeid.RequireFromPath(domain, "/ns/ops/sa/alice"), Roles: []callers.Grant{{Role: role, Namespace: namespace}},
	})
}

const identity = `apiVersion: legation.io/v1alpha1
kind: WorkloadIdentity
metadata: {name: NAME, namespace: SPACE}
spec:
  node: node-1
  selectors: ["unix:uid:1000"]
`

func docs(content string) []*adminv1.Document {
	return []*adminv1.Document{{File: "test.yaml", Content: []byte(content)}}
}

// issue signs a certificate as the door for agents would.
func (o *office) issue(profile ca.Profile, id, namespace, node string) string {
	o.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(o.t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(o.t, err)
	r := o.p.Authority.SignX509(o.t.Context(), []ca.X509Request{{
		Profile: profile, CSR: csr, ID: spiffeid.RequireFromString(id), Namespace: namespace, Entry: namespace + "/web", Node: node, Instance: "uid/1000",
	}})[0]
	must(o.t, r.Err)
	return r.Serial
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
