package catalog

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/legation-io/legation/internal/store"
)

func TestA02MalformedSPIFFEIDIsRefusedWhereverItIsDeclared(t *testing.T) {
	bad := []string{"spiffe://example.org/a/../b", "spiffe://example.org/./a", "spiffe://example.org/a//b", "spiffe://example.org//a",
		"spiffe://example.org/a/", "spiffe://example.org/%61", "spiffe://example.org/a%2fb", "spiffe://example.org/\u00e9", "spiffe://EXAMPLE.org/a",
		"spiffe://example.org:80/a", "spiffe://user@example.org/a", "spiffe://example.org/a?b", "spiffe://example.org/a#b", "SPIFFE://example.org/a",
		"spiffe://example.org/a b", "spiffe://example.org/a\\nb", "spiffe://example.org", "spiffe:///a", "spiffe://example.org/" + strings.Repeat("a", 2100)}
	c := open(t, newStore(t), Limits{})
	for _, id := range bad {
		if _, problems, err := c.Apply(t.Context(), ApplyParams{Documents: doc(identity("a", `spiffeID: "`+id+`"`))}); err != nil || len(problems) != 1 || problems[0].Field != "spec.spiffeID" || problems[0].Line == 0 || problems[0].Fix == "" {
			t.Errorf("%.60q: %v %v", id, err, problems)
		}
		annotated := "apiVersion: v1\nkind: Service\nmetadata: {name: s, annotations: {legation.io/spiffe-ids: \"spiffe://example.org/fine, " + id + "\"}}\nspec: {ports: [{port: 80}]}\n"
		if got := refused(t, c, annotated); !strings.Contains(got, "spiffe-ids") {
			t.Errorf("%.60q: %s", id, got)
		}
	}
}

// FuzzDocument: whatever is read does not panic, and what is accepted can be
// stored and read back as the same resource, with an ID that is its own form.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(shop + identity("a")))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"kind":"Service","apiVersion":"v1","metadata":{"name":"a"},"spec":{"ports":[{"port":1}]}}]}`))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("kind: WorkloadIdentity\n<<: {a: b}\n? [x]\n: y\n"))
	f.Add([]byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: b}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}]\nports: [{port: 1}]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		r := read("f", content, "default")
		for _, d := range r.declared {
			if len(r.problems) > 0 || len(check(testDomain, d)) > 0 {
				continue
			}
			value, err := marshal(d.kind, d.object)
			if err != nil {
				t.Fatal(err)
			}
			key := store.Key{TrustDomain: testDomain.Name(), Namespace: d.object.GetNamespace(), Kind: d.kind.plural, Name: d.object.GetName()}
			o, err := parse(testDomain, key, store.KV{Key: key.String(), Value: store.EncodeValue(d.kind.plural, valueVersion, value), Revision: 1})
			if err != nil {
				t.Fatalf("accepted and unreadable: %v\n%s", err, value)
			}
			again, err := marshal(o.kind, o.typed)
			if err != nil || string(again) != string(value) {
				t.Fatalf("changed by being stored:\n%s\n%s", value, again)
			}
			if o.kind == kindIdentity {
				id := newIdentity(testDomain, o).SPIFFEID("web-1")
				if parsed, err := spiffeid.FromString(id); err != nil || parsed.String() != id {
					t.Fatalf("an ID that is none: %q %v", id, err)
				}
			}
		}
	})
}

func TestJSONIsReadLikeYAML(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, "{\n\t\"apiVersion\": \"legation.io/v1alpha1\",\n\t\"kind\": \"WorkloadIdentity\",\n\t\"metadata\": {\n\t\t\"name\": \"a\"\n\t},\n\t\"spec\": {\n\t\t\"node\": \"web-1\",\n\t\t\"selectors\": [\n\t\t\t\"unix:uid:1\"\n\t\t]\n\t}\n}\n")
}

func TestWhatIsShownCanBeApplied(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, shop+identity("a"))
	objects, err := c.Get("all", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if applied := apply(t, c, string(o.Json)); applied[0].Action != "unchanged" {
			t.Errorf("%s %s: %s", o.Kind, o.Name, applied[0].Action)
		}
	}
}

func TestA47NamespaceSpeaksForItselfAlone(t *testing.T) {
	c := open(t, newStore(t), Limits{})
	apply(t, c, identity("victim/app")+identity("victim/free", `spiffeID: "spiffe://example.org/free"`))
	for name, content := range map[string]string{
		"its path":                identity("thief/app", `spiffeID: "spiffe://example.org/ns/victim/sa/app"`),
		"its path by a template":  identity("thief/app", `spiffeID: "spiffe://example.org/ns/victim/sa/{name}"`),
		"its path by a node":      identity("thief/app", `spiffeID: "spiffe://example.org/ns/{node}/sa/app"`, "node: victim"),
		"a path that is taken":    identity("thief/app", `spiffeID: "spiffe://example.org/free"`, "node: web-2"),
		"a pattern that holds it": identity("thief/app", `spiffeID: "spiffe://example.org/{node}"`, `node: "*"`),
	} {
		if got := refused(t, c, content); !strings.Contains(got, "belongs to namespace") {
			t.Errorf("%s: %s", name, got)
		}
	}
	// Nor does it open another's ports.
	apply(t, c, "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: thief, annotations: {legation.io/spiffe-ids: spiffe://example.org/ns/victim/sa/app}}\nspec: {selector: {a: b}, ports: [{port: 22}]}\n---\n"+
		"apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: e, namespace: thief}\nspec: {address: 10.0.0.1, labels: {a: b}}\n")
	s, _ := c.Snapshot()
	if e, _ := s.EntryByName("web-1", "victim/app"); len(e.Ports) > 0 {
		t.Errorf("a foreign service opened ports %v", e.Ports)
	}
}

func TestHostileDocumentsAreBounded(t *testing.T) {
	for name, content := range map[string]string{
		"100,000 unknown fields": "apiVersion: v1\nkind: Service\nspec:\n" + strings.Repeat("  slector", 1) + strings.Repeat("x: 1\n  y", 100_000) + ": 1\n",
		"deep nesting":           "apiVersion: v1\nkind: Service\nspec: " + strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000),
		"100,000 documents":      strings.Repeat("---\na\n", 100_000),
		"an anchor in itself":    "apiVersion: v1\nkind: Service\nmetadata: &a {name: x, labels: *a}\n",
		"an alias of nothing":    "apiVersion: v1\nkind: *x\n",
	} {
		began := time.Now()
		r := read("f", []byte(content), "default")
		if len(r.problems) == 0 || len(r.problems) > maxProblems+2 {
			t.Errorf("%s: %d problems", name, len(r.problems))
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
}
