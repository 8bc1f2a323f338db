package catalog

import (
	"fmt"
	"testing"

	"github.com/legation-io/legation/internal/store"
)

// full returns a snapshot with so many entries, on so many nodes, and as many
// services with ten endpoints as there are nodes.
func full(b testing.TB, entries, nodes int) (*Catalog, []store.KV) {
	var kvs []store.KV
	add := func(k *kind, name, content string) {
		key := store.Key{TrustDomain: testDomain.Name(), Namespace: "default", Kind: k.plural, Name: name}
		kvs = append(kvs, store.KV{Key: key.String(), Value: store.EncodeValue(k.plural, valueVersion, []byte(content)), Revision: 1, CreateRevision: 1})
	}
	for n := range entries {
		name := fmt.Sprintf("e%d", n)
		add(kindIdentity, name, fmt.Sprintf(`{"apiVersion":"legation.io/v1alpha1","kind":"WorkloadIdentity","metadata":{"name":%q,"namespace":"default"},"spec":{"node":"n%d","selectors":["unix:uid:%d"]}}`, name, n%nodes, n))
	}
	for n := range nodes {
		name := fmt.Sprintf("s%d", n)
		add(kindService, name, fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q,"namespace":"default"},"spec":{"selector":{"app":%q},"ports":[{"port":80}]}}`, name, name))
		for e := range 10 {
			add(kindWorkloadEntry, fmt.Sprintf("w%d-%d", n, e), fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":"w%d-%d","namespace":"default"},"spec":{"address":"10.%d.%d.%d","labels":{"app":%q},"serviceAccount":"e%d"}}`, n, e, n/250, n%250, e, name, n))
		}
	}
	c, err := Open(b.Context(), Params{Store: newStore(b), TrustDomain: testDomain})
	if err != nil {
		b.Fatal(err)
	}
	events := make([]store.Event, len(kvs))
	for n, kv := range kvs {
		events[n] = store.Event{KV: kv}
	}
	c.apply([]store.Batch{{Revision: 1, Events: events}})
	return c, kvs
}

func BenchmarkOneChangedEntry(b *testing.B) {
	for _, entries := range []int{500, 5_000, 50_000} {
		b.Run(fmt.Sprintf("of=%d", entries), func(b *testing.B) {
			c, kvs := full(b, entries, 100)
			b.ReportAllocs()
			revision := int64(1)
			for b.Loop() {
				revision++
				kv := kvs[int(revision)%entries]
				kv.Revision = revision
				c.apply([]store.Batch{{Revision: revision, Events: []store.Event{{KV: kv}}}})
			}
		})
	}
}

func BenchmarkOneChangedEndpoint(b *testing.B) {
	c, kvs := full(b, 50_000, 100)
	b.ReportAllocs()
	revision := int64(1)
	for b.Loop() {
		revision++
		kv := kvs[len(kvs)-1]
		kv.Revision = revision
		kv.Value = store.EncodeValue(kindWorkloadEntry.plural, valueVersion, fmt.Appendf(nil, `{"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":"w99-9","namespace":"default"},"spec":{"address":"10.9.9.%d","labels":{"app":"s99"},"serviceAccount":"e99"}}`, revision%250))
		c.apply([]store.Batch{{Revision: revision, Events: []store.Event{{KV: kv}}}})
	}
}

func BenchmarkFirstSnapshotOf50k(b *testing.B) {
	for b.Loop() {
		full(b, 50_000, 100)
	}
}

func BenchmarkEntriesForNode(b *testing.B) {
	c, _ := full(b, 50_000, 100)
	s, _ := c.Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		if len(s.EntriesFor("n7")) != 500 {
			b.Fatal("wrong entries")
		}
	}
}
