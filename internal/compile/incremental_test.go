package compile

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/catalog"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/store/memory"
)

// random declares or deletes one thing of a small world in which most things
// touch each other.
func random(r *rand.Rand) (content string) {
	ns := []string{"a", "b"}[r.IntN(2)]
	n := r.IntN(3)
	node := []string{"web-1", "web-2", "'*'"}[r.IntN(3)]
	id := []string{"", fmt.Sprintf("spiffeID: 'spiffe://example.org/ns/%s/node/{node}/%d', ", ns, n)}[r.IntN(2)]
	switch r.IntN(5) {
	case 0:
		return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: i%d, namespace: %s}\nspec: {%snode: %s, selectors: ['unix:uid:%d'], ttl: %dh}\n", n, ns, id, node, n, 1+r.IntN(3))
	case 1:
		ip := ""
		if r.IntN(2) == 0 {
			ip = fmt.Sprintf(", clusterIP: 10.96.%d.%d", map[string]int{"a": 1, "b": 2}[ns], n)
		}
		return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: %s}\nspec: {selector: {app: x%d}, ports: [{port: %d}]%s}\n", n, ns, r.IntN(3), 80+r.IntN(2), ip)
	case 2:
		return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w%d, namespace: %s}\nspec: {address: 10.0.0.%d, labels: {app: x%d, tier: y}, serviceAccount: i%d}\n", n, ns, 1+r.IntN(4), r.IntN(3), r.IntN(3))
	}
	if r.IntN(2) == 0 {
		space := []string{ns, "legation-system"}[r.IntN(2)]
		subject := []string{"", "subjects: ['spiffe://example.org/ns/a/**'], ", fmt.Sprintf("subjects: ['spiffe://example.org/ns/%s/sa/i%d'], ", ns, n)}[r.IntN(3)]
		if space == "b" && strings.Contains(subject, "/a/") {
			subject = ""
		}
		return fmt.Sprintf("apiVersion: legation.io/v1alpha1\nkind: Policy\nmetadata: {name: p%d, namespace: %s}\nspec: {%squery: data.a%d, modules: {a.rego: \"package a%d\"}, data: {a0: true, a1: true}}\n", n, space, subject, r.IntN(2), r.IntN(2))
	}
	return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e%d, namespace: %s, labels: {kubernetes.io/service-name: s%d}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: [10.0.1.%d], nodeName: web-%d, targetRef: {kind: WorkloadIdentity, name: i%d}}]\n",
		n, ns, r.IntN(3), 1+r.IntN(4), 1+r.IntN(2), r.IntN(3))
}

// TestIncrementalIsFull: after any history, what was compiled change by
// change is what a replica that starts now compiles, to the byte.
func TestIncrementalIsFull(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			c, s := openOn(t)
			held := map[string]map[string]*distribute.Resource{"web-1": {}, "web-2": {}}
			policies := map[string][]*distribute.Resource{}
			compiled := 0
			proxies := map[*nodev1.Subject]map[string]*distribute.Resource{}
			var subjects []*nodev1.Subject
			for _, ns := range []string{"a", "b"} {
				for _, subject := range []*nodev1.Subject{
					{Entry: ns + "/i0", Mode: nodev1.Mode_MODE_CAPTURE},
					{Entry: ns + "/i1", Mode: nodev1.Mode_MODE_EXPLICIT, Outbound: []*nodev1.Outbound{{Service: "s1.a", Port: 80, Listen: "127.0.0.1:1"}, {Service: "s2", Port: 81, Listen: "127.0.0.1:2"}}},
				} {
					subjects = append(subjects, subject)
					proxies[subject] = map[string]*distribute.Resource{}
				}
			}
			var last *catalog.Snapshot
			for range 60 {
				content := random(r)
				if r.IntN(4) == 0 {
					remove(t, c, content)
				} else {
					tryApply(t, c, content)
				}
				if r.IntN(3) == 0 {
					continue // the next change comes together with this one
				}
				now, _ := c.Snapshot()
				delta := c.Changes(last, now)
				fresh, err := catalog.Open(t.Context(), catalog.Params{Store: s, TrustDomain: testDomain})
				if err != nil {
					t.Fatal(err)
				}
				full, _ := fresh.Snapshot()
				for node, have := range held {
					take(have, EntryChanges(now, delta, node, "x"))
					same(t, "entries of "+node, have, Entries(full, node))
					if PoliciesAffected(now, delta, node) {
						policies[node] = Policies(now, node)
					}
					applied := map[string]*distribute.Resource{}
					take(applied, Diff("x", nil, policies[node]))
					same(t, "policies of "+node, applied, Policies(full, node))
					compiled += len(applied)
				}
				for _, subject := range subjects {
					if last == nil || Affected(delta, subject) {
						all, _ := Proxy(now, subject, testOptions)
						take(proxies[subject], Diff("x", sorted(proxies[subject]), all))
					}
					want, _ := Proxy(full, subject, testOptions)
					same(t, "proxy of "+subject.Entry, proxies[subject], want)
				}
				last = now
			}
			if compiled == 0 {
				t.Error("no policy was ever compiled")
			}
		})
	}
}

func openOn(t *testing.T) (*catalog.Catalog, *memory.Store) {
	s := memory.New()
	return openAt(t, s), s
}

func take(have map[string]*distribute.Resource, changes []distribute.Change) {
	for _, c := range changes {
		if c.Resource == nil {
			delete(have, c.Type+c.Name)
		} else {
			have[c.Type+c.Name] = c.Resource
		}
	}
}

func same(t *testing.T, what string, have map[string]*distribute.Resource, want []*distribute.Resource) {
	t.Helper()
	for _, c := range Diff("x", sorted(have), want) {
		t.Fatalf("%s: %s %s differs", what, c.Type, c.Name)
	}
}
