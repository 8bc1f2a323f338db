package distribute

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The three changes of the design's budget, each with 5,000 subscribers, from
// the change to the last response message, beside go-control-plane's
// LinearCache. Budgets per change: leaf 13 µs, bundle 39 ms, cluster 305 ms.
const fleet = 5000

const clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"

type load struct {
	name     string
	content  []string           // resources at the start
	ask      func(int) []string // of subscriber i; nil is the wildcard
	change   string
	affected func(int) bool
}

var loads = []load{
	{"leaf", append(each("leaf-%d", fleet), "ROOTCA"), func(i int) []string { return []string{fmt.Sprint("leaf-", i), "ROOTCA"} },
		"leaf-77", func(i int) bool { return i == 77 }},
	{"bundle", append(each("leaf-%d", fleet), "ROOTCA"), func(i int) []string { return []string{fmt.Sprint("leaf-", i), "ROOTCA"} },
		"ROOTCA", func(int) bool { return true }},
	{"cluster", each("service-%d", 200), func(int) []string { return nil },
		"service-7", func(int) bool { return true }},
}

func each(format string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i)
	}
	return out
}

func benchCluster(name string, round int) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, AltStatName: fmt.Sprintf("round %d %0800d", round, round)}
}

func body(b *testing.B, m proto.Message) []byte {
	out, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func BenchmarkOneChangeFor5000(b *testing.B) {
	for _, l := range loads {
		b.Run(l.name+"/legation", func(b *testing.B) { benchEngine(b, l) })
		b.Run(l.name+"/LinearCache", func(b *testing.B) { benchLinear(b, l) })
	}
}

func benchEngine(b *testing.B, l load) {
	e := New(Params{})
	for _, name := range l.content {
		e.Apply(Change{Scope: all, Resource: NewResource(clusterType, name, body(b, benchCluster(name, 0)))})
	}
	before := heap()
	var affected []*Subscriber
	for i := range fleet {
		s := e.Attach(SubscriberParams{ID: fmt.Sprint("p", i), Scopes: []Scope{Scope(fmt.Sprint("proxy/", i)), all}})
		defer s.Close()
		if err := s.Request(Request{Type: clusterType, Subscribe: l.ask(i)}); err != nil {
			b.Fatal(err)
		}
		deliver(b, s)
		if l.affected(i) {
			affected = append(affected, s)
		}
	}
	perProxy := float64(heap()-before) / fleet
	round := 0
	b.ReportAllocs()
	for b.Loop() {
		round++
		e.Apply(Change{Scope: all, Resource: NewResource(clusterType, l.change, body(b, benchCluster(l.change, round)))})
		for _, s := range affected {
			deliver(b, s)
		}
	}
	b.ReportMetric(perProxy, "B/proxy")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// deliver does what a door does, except for the socket.
func deliver(b *testing.B, s *Subscriber) {
	r, err := s.Next(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.Type, Nonce: r.Nonce, RemovedResources: r.Removed}
	for _, x := range r.Resources {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: x.Name, Version: x.Version, Resource: &anypb.Any{TypeUrl: x.Type, Value: x.Body}})
	}
	if err := s.Request(Request{Type: r.Type, Nonce: r.Nonce}); err != nil {
		b.Fatal(err)
	}
}

func benchLinear(b *testing.B, l load) {
	c := cache.NewLinearCache(clusterType)
	first := map[string]types.Resource{}
	for _, name := range l.content {
		first[name] = benchCluster(name, 0)
	}
	c.SetResources(first)
	type peer struct {
		sub stream.Subscription
		ch  chan cache.DeltaResponse
	}
	var affected []*peer
	open := func(p *peer, nonce string) {
		if _, err := c.CreateDeltaWatch(&cache.DeltaRequest{TypeUrl: clusterType, ResponseNonce: nonce}, p.sub, p.ch); err != nil {
			b.Fatal(err)
		}
	}
	receive := func(p *peer) {
		r := <-p.ch
		if _, err := r.GetDeltaDiscoveryResponse(); err != nil {
			b.Fatal(err)
		}
		p.sub.SetReturnedResources(r.GetNextVersionMap())
		open(p, "1")
	}
	for i := range fleet {
		p := &peer{sub: stream.NewDeltaSubscription(l.ask(i), nil, nil, true), ch: make(chan cache.DeltaResponse, 1)}
		open(p, "")
		receive(p)
		if l.affected(i) {
			affected = append(affected, p)
		}
	}
	round := 0
	b.ReportAllocs()
	for b.Loop() {
		round++
		if err := c.UpdateResource(l.change, benchCluster(l.change, round)); err != nil {
			b.Fatal(err)
		}
		for _, p := range affected {
			receive(p)
		}
	}
}
