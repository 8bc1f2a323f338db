package catalog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/store"
)

// put writes a value behind the catalog's back.
func put(t *testing.T, s store.Store, kind, name string, value []byte) {
	t.Helper()
	key := store.Key{TrustDomain: testDomain.Name(), Namespace: "default", Kind: kind, Name: name}
	if _, err := s.Commit(t.Context(), store.Txn{Then: []store.Op{{Key: key.String(), Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

func TestA54PoisonedValueIsQuarantinedAndOthersContinue(t *testing.T) {
	good := func(name string) string {
		return `{"apiVersion":"legation.io/v1alpha1","kind":"WorkloadIdentity","metadata":{"name":"` + name + `","namespace":"default"},"spec":{"node":"web-1","selectors":["unix:uid:1"]}}`
	}
	for name, value := range map[string][]byte{
		"not framed":          []byte(good("app")),
		"no JSON":             store.EncodeValue("workloadidentities", 1, []byte("{")),
		"a newer version":     store.EncodeValue("workloadidentities", 2, []byte(good("app"))),
		"another kind":        store.EncodeValue("services", 1, []byte(good("app"))),
		"another name":        store.EncodeValue("workloadidentities", 1, []byte(good("other"))),
		"an unknown field":    store.EncodeValue("workloadidentities", 1, []byte(strings.Replace(good("app"), `"spec":{`, `"spec":{"x":1,`, 1))),
		"a reserved identity": store.EncodeValue("workloadidentities", 1, []byte(strings.Replace(good("app"), `"spec":{`, `"spec":{"spiffeID":"spiffe://example.org/legation/agent/web-1",`, 1))),
		"a foreign identity":  store.EncodeValue("workloadidentities", 1, []byte(strings.Replace(good("app"), `"spec":{`, `"spec":{"spiffeID":"spiffe://other.org/a",`, 1))),
		"empty":               {},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			c := open(t, s, Limits{})
			apply(t, c, identity("app", "ttl: 1h")+identity("neighbour"))
			put(t, s, "workloadidentities", "app", value)
			apply(t, c, identity("later"))
			now := wait(t, c, "the poison is seen", func(s *Snapshot) bool { return len(s.Quarantined()) == 1 })
			if q := now.Quarantined()[0]; q.Name != "app" || q.Reason == "" {
				t.Errorf("quarantined %+v", q)
			}
			if e, ok := now.EntryByName("web-1", "default/app"); !ok || e.X509TtlSeconds != 3600 {
				t.Error("the last good one is gone")
			}
			if len(now.EntriesFor("web-1")) != 3 {
				t.Error("others do not continue")
			}
			// After a restart the value is left out, the rest is there.
			again, err := Open(t.Context(), Params{Store: s, TrustDomain: testDomain})
			if err != nil {
				t.Fatal(err)
			}
			if now, _ := again.Snapshot(); len(now.EntriesFor("web-1")) != 2 || len(now.Quarantined()) != 1 {
				t.Error("after a restart", len(now.EntriesFor("web-1")), now.Quarantined())
			}
			// It is mended by applying or deleting it.
			apply(t, c, identity("app", "ttl: 2h"))
			if now, _ := c.Snapshot(); len(now.Quarantined()) != 0 {
				t.Error("still quarantined")
			}
		})
	}
}

func TestReplicasNeverBothWin(t *testing.T) {
	s := newStore(t)
	replicas := []*Catalog{open(t, s, Limits{}), open(t, s, Limits{}), open(t, s, Limits{})}
	var won, refused int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range 12 { // each wants the same address
		wg.Go(func() {
			content := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n", n)
			_, problems, err := replicas[n%3].Apply(t.Context(), ApplyParams{Documents: doc(content)})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				t.Error(err)
			case len(problems) == 0:
				won++
			default:
				refused++
			}
		})
	}
	wg.Wait()
	if won != 1 || refused != 11 {
		t.Errorf("%d have the address, %d were refused", won, refused)
	}
}

func TestReplicaFollowsAnother(t *testing.T) {
	s := newStore(t)
	a, b := open(t, s, Limits{}), open(t, s, Limits{})
	apply(t, a, shop+identity("shop"))
	now := wait(t, b, "b has it", func(s *Snapshot) bool { _, ok := s.Service("default", "shop"); return ok })
	if e, ok := now.EntryByName("web-1", "default/shop"); !ok || len(e.Ports) != 2 {
		t.Errorf("entry %v", e)
	}
	if _, _, err := b.Delete(t.Context(), DeleteParams{Kind: "svc", Names: []string{"shop"}}); err != nil {
		t.Fatal(err)
	}
	now = wait(t, a, "a sees it gone", func(s *Snapshot) bool { _, ok := s.Service("default", "shop"); return !ok })
	if e, _ := now.EntryByName("web-1", "default/shop"); len(e.Ports) != 0 {
		t.Errorf("ports without a service: %v", e.Ports)
	}
}

func TestCompactedWatchIsReadAnew(t *testing.T) {
	s := newStore(t)
	c, err := Open(t.Context(), Params{Store: s, TrustDomain: testDomain})
	if err != nil {
		t.Fatal(err)
	}
	writer := open(t, s, Limits{})
	apply(t, writer, identity("a")+identity("b"))
	before, _ := c.Snapshot()
	if _, _, err := writer.Delete(t.Context(), DeleteParams{Kind: "wi", Names: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	revision, _ := s.Revision(t.Context())
	if err := s.Compact(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	run(t, c)
	after := wait(t, c, "it has caught up", func(s *Snapshot) bool { _, ok := s.Identity("default/a"); return ok })
	if _, ok := after.Identity("default/b"); ok {
		t.Error("what was deleted is back")
	}
	if d := c.Changes(before, after); len(d.Entries) != 1 {
		t.Errorf("changes %+v", d)
	}
	apply(t, writer, identity("c"))
	wait(t, c, "it follows again", func(s *Snapshot) bool { _, ok := s.Identity("default/c"); return ok })
}

func TestSnapshotsBeforeStayAsTheyWere(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, shop+identity("a", "ttl: 1h"))
	before, _ := c.Snapshot()
	apply(t, c, identity("a", "ttl: 2h")+identity("shop"))
	if _, _, err := c.Delete(t.Context(), DeleteParams{Kind: "svc", Names: []string{"shop"}}); err != nil {
		t.Fatal(err)
	}
	if e, _ := before.EntryByName("web-1", "default/a"); e.X509TtlSeconds != 3600 {
		t.Error("an entry changed under its reader")
	}
	if _, ok := before.Service("default", "shop"); !ok {
		t.Error("a service went away under its reader")
	}
	if len(before.EntriesFor("web-1")) != 1 {
		t.Error("an entry came to an old snapshot")
	}
}

func TestForgottenChangesAreFound(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	first, _ := c.Snapshot()
	apply(t, c, identity("a"))
	for n := range len(c.history.ring) + 8 { // a ttl each, below 72h
		apply(t, c, identity("b", fmt.Sprintf("ttl: %ds", n+1)))
	}
	now, _ := c.Snapshot()
	d := c.Changes(first, now)
	if len(d.Entries) != 2 || d.Entries[0].Name != "default/a" || d.Entries[1].Name != "default/b" {
		t.Errorf("changes %+v", d)
	}
}

func TestLimitsAreTyped(t *testing.T) {
	for name, test := range map[string]struct {
		limits  Limits
		content string
		names   string
	}{
		"entries of a node":         {Limits{EntriesPerNode: 1}, identity("a") + identity("b"), "entriesPerNode"},
		"entries of a namespace":    {Limits{EntriesPerNamespace: 1}, identity("a") + identity("b", "node: web-2"), "entriesPerNamespace"},
		"services of a namespace":   {Limits{ResourcesPerNamespace: 1}, shop, "resourcesPerNamespace"},
		"policies of a namespace":   {Limits{PoliciesPerNamespace: 1}, policyNamed("a", "allow := true") + "---\n" + policyNamed("b", "allow := true"), "policiesPerNamespace"},
		"bytes of a document":       {Limits{DocumentBytes: 10}, identity("a"), "documentBytes"},
		"bytes of a resource":       {Limits{ResourceBytes: 10}, identity("a"), "resourceBytes"},
		"resources of one apply":    {Limits{ResourcesPerApply: 1}, identity("a") + identity("b"), "resourcesPerApply"},
		"entries of each namespace": {Limits{EntriesPerNamespace: 1}, identity("x/a") + identity("y/b"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, newStore(t), test.limits)
			_, problems, err := c.Apply(t.Context(), ApplyParams{Documents: doc(test.content)})
			if test.names == "" {
				if err != nil || len(problems) > 0 {
					t.Error(err, problems)
				}
				return
			}
			if !fault.Is(err, fault.Limited) || !strings.Contains(err.Error(), test.names) {
				t.Error(err)
			}
			if o, _ := c.Get("all", "", nil); len(o) > 0 {
				t.Error("something was stored")
			}
		})
	}
}

func TestStoreThatFailsStoresNothingAndSaysSo(t *testing.T) {
	s := newStore(t)
	c := open(t, s, Limits{})
	s.FailCommits(func(store.Txn) error { return fault.New(fault.Limited, "the disk is full") })
	if _, _, err := c.Apply(t.Context(), ApplyParams{Documents: doc(identity("a"))}); !fault.Is(err, fault.Limited) {
		t.Error(err)
	}
	s.FailCommits(nil)
	apply(t, c, identity("a"))
}

func TestOthersKeysWakeNobody(t *testing.T) {
	c, err := Open(t.Context(), Params{Store: newStore(t), TrustDomain: testDomain})
	if err != nil {
		t.Fatal(err)
	}
	_, changed := c.Snapshot()
	key := store.Key{TrustDomain: testDomain.Name(), Namespace: store.System, Kind: "segment", Name: "1"}
	c.apply([]store.Batch{{Revision: 7, Events: []store.Event{{KV: store.KV{Key: key.String(), Value: []byte("x"), Revision: 7}}}}})
	select {
	case <-changed:
		t.Error("woke for a segment")
	default:
	}
}

func TestA22SelectorsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	s := newStore(t)
	c, err := Open(t.Context(), Params{Store: s, TrustDomain: testDomain, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, c)
	apply(t, c, identity("a", `selectors: ["unix:path:/canary"]`))
	stop()
	if strings.Contains(log.String(), "canary") {
		t.Error(log.String())
	}
}

// What is stored is read by other versions: its bytes change only with a new
// version of the value and a migration.
func TestStoredFormStays(t *testing.T) {
	s := newStore(t)
	c := open(t, s, Limits{})
	apply(t, c, shop+identity("app", "ttl: 1h", "sdsNames: [app-cert]"))
	for key, want := range map[string]string{
		"/legation/v1/example.org/default/workloadidentities/app": "\xd1\x12workloadidentities\x01" +
			`{"kind":"WorkloadIdentity","apiVersion":"legation.io/v1alpha1","metadata":{"name":"app","namespace":"default"},"spec":{"node":"web-1","selectors":["unix:uid:1000"],"ttl":"1h","sdsNames":["app-cert"]}}`,
		"/legation/v1/example.org/default/workloadentries/shop-1": "\xd1\x0fworkloadentries\x01" +
			`{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":"shop-1","namespace":"default"},"spec":{"address":"10.0.0.1","labels":{"app":"shop"},"serviceAccount":"shop"}}`,
		"/legation/v1/example.org/default/services/shop": "\xd1\x08services\x01" +
			`{"apiVersion":"v1","kind":"Service","metadata":{"name":"shop","namespace":"default"},"spec":{"ports":[{"name":"http","port":80,"targetPort":8080}],"selector":{"app":"shop"},"clusterIP":"10.96.0.10"}}`,
		"/legation/v1/example.org/system/namespace/default": "\xd1\x09namespace\x01{}",
	} {
		kv, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if string(kv.Value) != want {
			t.Errorf("%s is\n%q, want\n%q", key, kv.Value, want)
		}
	}
}
