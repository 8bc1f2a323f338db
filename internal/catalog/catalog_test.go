package catalog

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	adminv1 "github.com/legation-io/legation/api/admin/v1"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
	"github.com/legation-io/legation/internal/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testDomain = spiffeid.RequireTrustDomainFromString("example.org")

// open starts a catalog over a store; both end with the test.
func open(t testing.TB, s store.Store, limits Limits) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), Params{Store: s, TrustDomain: testDomain, Log: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewPedanticRegistry(), Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c)
	return c
}

// run follows the store until the test ends or stop is called.
func run(t testing.TB, c *Catalog) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func newStore(t testing.TB) *memory.Store {
	s := memory.New()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func doc(content string) []*adminv1.Document {
	return []*adminv1.Document{{File: "test.yaml", Content: []byte(content)}}
}

func apply(t testing.TB, c *Catalog, content string) []*adminv1.Applied {
	t.Helper()
	applied, problems, err := c.Apply(t.Context(), ApplyParams{Documents: doc(content), Actor: "test"})
	if err != nil || len(problems) > 0 {
		t.Fatalf("apply: %v %s", err, sentences(problems))
	}
	return applied
}

func refused(t testing.TB, c *Catalog, content string) string {
	t.Helper()
	_, problems, err := c.Apply(t.Context(), ApplyParams{Documents: doc(content)})
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) == 0 {
		t.Fatalf("applied, want a problem:\n%s", content)
	}
	return sentences(problems)
}

// identity is a WorkloadIdentity as YAML; more is added to its spec.
func identity(name string, more ...string) string {
	spec := []string{"node: web-1", "selectors: [\"unix:uid:1000\"]"}
	for _, m := range more {
		key, _, _ := strings.Cut(m, ":")
		spec = slices.DeleteFunc(spec, func(s string) bool { return strings.HasPrefix(s, key+":") })
		spec = append(spec, m)
	}
	namespace := "default"
	if ns, n, ok := strings.Cut(name, "/"); ok {
		namespace, name = ns, n
	}
	return "---\napiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec:\n  " +
		strings.Join(spec, "\n  ") + "\n"
}

const shop = `
apiVersion: v1
kind: Service
metadata: {name: shop}
spec:
  selector: {app: shop}
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: shop-1}
spec: {address: 10.0.0.1, labels: {app: shop}, serviceAccount: shop}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: shop-2}
spec: {address: 10.0.0.2, labels: {app: shop}, ports: {http: 9090}, serviceAccount: shop}
`

func TestEntryOfANodeIsResolved(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, identity("app", `spiffeID: "spiffe://{trustDomain}/host/{node}/{name}"`, `node: "*"`,
		`selectors: ["unix:uid:7", "cgroup:/a", "unix:gid:7"]`, "ttl: 1h", "jwtTTL: 90s", "hint: internal",
		"sdsNames: [app-cert]", "dnsNames: [app.example.org]", "includeOwnIP: true")+identity("other", "node: web-2"))
	s, _ := c.Snapshot()
	entries := s.EntriesFor("web-1")
	if len(entries) != 1 {
		t.Fatalf("%d entries, want 1", len(entries))
	}
	e := entries[0]
	if e.Name != "default/app" || e.SpiffeId != "spiffe://example.org/host/web-1/app" || e.X509TtlSeconds != 3600 || e.JwtTtlSeconds != 90 ||
		!slices.Equal(e.Selectors, []string{"cgroup:/a", "unix:gid:7", "unix:uid:7"}) || !e.IncludeOwnIp || e.Hint != "internal" ||
		!slices.Equal(e.SdsNames, []string{"app-cert"}) || !slices.Equal(e.DnsNames, []string{"app.example.org"}) {
		t.Errorf("entry is %v", e)
	}
	if _, ok := s.EntryByName("web-1", "default/other"); ok {
		t.Error("web-1 sees an entry of web-2")
	}
	if e, ok := s.EntryByName("web-2", "default/other"); !ok || e.SpiffeId != "spiffe://example.org/ns/default/sa/other" {
		t.Errorf("web-2 has %v", e)
	}
}

func TestServiceJoinsItsEndpoints(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, shop+identity("shop")+identity("elsewhere/shop"))
	s, _ := c.Snapshot()
	for _, host := range []string{"shop", "shop.default", "shop.default.svc.cluster.local"} {
		if _, ok := s.Service("default", host); !ok {
			t.Errorf("no service %s", host)
		}
	}
	svc, _ := s.Service("other", "shop.default")
	p, _ := svc.Port(80)
	if len(p.Endpoints) != 2 || p.Endpoints[0].Port != 8080 || p.Endpoints[1].Port != 9090 ||
		!slices.Equal(p.IDs, []string{"spiffe://example.org/ns/default/sa/shop"}) || svc.Addresses[0].String() != "10.96.0.10" {
		t.Errorf("service is %+v", svc)
	}
	e, _ := s.EntryByName("web-1", "default/shop")
	if !slices.Equal(e.Ports, []uint32{8080, 9090}) {
		t.Errorf("ports %v", e.Ports)
	}
	if e, _ := s.EntryByName("web-1", "elsewhere/shop"); len(e.Ports) != 0 {
		t.Errorf("ports of an identity that is no endpoint: %v", e.Ports)
	}
}

func TestEndpointSliceSaysWhichIdentity(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: s%ANN}\nspec: {ports: [{port: 80}]}\n---\n"
	const slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, labels: {kubernetes.io/service-name: s}%ANN}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.0.0.1]%REF}]\n"
	const annotation = `, annotations: {legation.io/spiffe-ids: "%s"}`
	for name, test := range map[string]struct{ service, slice, ref, want string }{
		"by targetRef, before any annotation":  {annotation, annotation, ", targetRef: {kind: WorkloadIdentity, name: app}, nodeName: web-1", "spiffe://example.org/ns/default/sa/app"},
		"by annotation of the slice":           {annotation, annotation, "", "spiffe://example.org/slice"},
		"by annotation of the service":         {annotation, "", "", "spiffe://example.org/service"},
		"by nothing: the endpoint is left out": {"", "", "", ""},
		"a missing identity leaves it out":     {annotation, annotation, ", targetRef: {kind: WorkloadIdentity, name: gone}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, newStore(t), Limits{})
			apply(t, c, identity("app")+"---\n"+strings.Replace(service, "%ANN", strings.Replace(test.service, "%s", "spiffe://example.org/service", 1), 1)+
				strings.NewReplacer("%ANN", strings.Replace(test.slice, "%s", "spiffe://example.org/slice", 1), "%REF", test.ref).Replace(slice))
			s, _ := c.Snapshot()
			svc, _ := s.Service("default", "s")
			p, _ := svc.Port(80)
			if got := strings.Join(p.IDs, ","); got != test.want || (test.want == "") != (len(svc.Problems) > 0) || (test.want == "") != (len(p.Endpoints) == 0) {
				t.Errorf("IDs %q endpoints %v problems %q, want %q", got, p.Endpoints, svc.Problems, test.want)
			}
		})
	}
}

func TestAppliedIsReported(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	actions := func(applied []*adminv1.Applied) string {
		var out []string
		for _, a := range applied {
			out = append(out, a.Action)
		}
		return strings.Join(out, " ")
	}
	if got := actions(apply(t, c, identity("a")+identity("b"))); got != "created created" {
		t.Error(got)
	}
	before, _ := c.Snapshot()
	if got := actions(apply(t, c, identity("a")+identity("b", "ttl: 2h"))); got != "unchanged configured" {
		t.Error(got)
	}
	after, _ := c.Snapshot()
	if d := c.Changes(before, after); len(d.Entries) != 1 || d.Entries[0].Name != "default/b" {
		t.Errorf("changes %+v", d)
	}
	deleted, _, err := c.Delete(t.Context(), DeleteParams{Kind: "identity", Names: []string{"a"}})
	if err != nil || actions(deleted) != "deleted" {
		t.Error(deleted, err)
	}
	if _, err := c.Get("wi", "default", []string{"a"}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if objects, err := c.Get("all", "", nil); err != nil || len(objects) != 1 || objects[0].Name != "b" {
		t.Error(objects, err)
	}
	if _, _, err := c.Delete(t.Context(), DeleteParams{Kind: "wi", Names: []string{"a", "b"}}); !fault.Is(err, fault.NotFound) {
		t.Error("deleted some of what was named:", err)
	}
	if _, _, err := c.Delete(t.Context(), DeleteParams{Documents: doc(identity("a") + identity("b")), IgnoreNotFound: true}); err != nil {
		t.Error(err)
	}
}

func TestOneProblemStoresNothing(t *testing.T) {
	s := newStore(t)
	c := open(t, s, Limits{})
	before, _ := s.Revision(t.Context())
	refused(t, c, identity("a")+identity("b", "ttl: soon"))
	if after, _ := s.Revision(t.Context()); after != before {
		t.Error("something was stored")
	}
}

func TestDryRunStoresNothing(t *testing.T) {
	s := newStore(t)
	c := open(t, s, Limits{})
	before, _ := s.Revision(t.Context())
	applied, problems, err := c.Apply(t.Context(), ApplyParams{Documents: doc(identity("a")), DryRun: true})
	if err != nil || len(problems) > 0 || len(applied) != 1 || applied[0].Action != "created" {
		t.Error(applied, problems, err)
	}
	if after, _ := s.Revision(t.Context()); after != before {
		t.Error("something was stored")
	}
}

func wait(t *testing.T, c *Catalog, what string, ok func(*Snapshot) bool) *Snapshot {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		s, changed := c.Snapshot()
		if ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("waited in vain until " + what)
		}
	}
}
