package main

import (
	"context"
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"

// fleetLoad is one kind of change that a fleet of subscribers sees.
type fleetLoad struct {
	name     string
	content  []string
	ask      func(int) []string // of subscriber i; nil is the wildcard
	change   string
	affected func(int) bool
}

func fleetLoads(fleet int) []fleetLoad {
	leaves := append(numbered("leaf-%d", fleet), "ROOTCA")
	own := func(i int) []string { return []string{fmt.Sprint("leaf-", i), "ROOTCA"} }
	all := func(int) bool { return true }
	return []fleetLoad{
		{"one leaf", leaves, own, "leaf-77", func(i int) bool { return i == 77 }},
		{"a bundle for all", leaves, own, "ROOTCA", all},
		{"a cluster for all", numbered("service-%d", 200), func(int) []string { return nil }, "service-7", all},
	}
}

func numbered(format string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i)
	}
	return out
}

func benchCluster(name string, round int) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, AltStatName: fmt.Sprintf("round %d %0800d", round, round)}
}

// engine is CPU per change at 5,000 subscribers, from the change to the last
// response message, beside go-control-plane's LinearCache.
func engine(ctx context.Context, r *run) ([]Row, error) {
	fleet := of(r, 5000, 1000)
	var rows []Row
	for _, l := range fleetLoads(fleet) {
		ours, err := engineCPU(ctx, r, l, fleet)
		if err != nil {
			return rows, err
		}
		peer, err := linearCPU(r, l, fleet)
		if err != nil {
			return rows, err
		}
		rows = append(rows, fact(fmt.Sprintf("change of %s, %d subscribers, CPU", l.name, fleet), ours, "us").beside("LinearCache", peer).ratioAtMost(1))
	}
	return rows, nil
}

// cpuPerRound repeats a change for a while and returns CPU in microseconds.
func cpuPerRound(r *run, change func(round int) error) (float64, error) {
	if err := change(1); err != nil { // warm
		return 0, err
	}
	deadline := time.Now().Add(of(r, 1200*time.Millisecond, 300*time.Millisecond))
	cpu, n := ownCPU(), 0
	for ; n < 3 || time.Now().Before(deadline); n++ {
		if err := change(n + 2); err != nil {
			return 0, err
		}
	}
	return us(ownCPU()-cpu) / float64(n), nil
}

func engineCPU(ctx context.Context, r *run, l fleetLoad, fleet int) (float64, error) {
	const all = distribute.Scope("all")
	set := func(e *distribute.Engine, name string, round int) error {
		body, err := proto.Marshal(benchCluster(name, round))
		e.Apply(distribute.Change{Scope: all, Resource: distribute.NewResource(clusterType, name, body)})
		return err
	}
	// deliver does what a door does, except for the socket.
	deliver := func(s *distribute.Subscriber) error {
		res, err := s.Next(ctx)
		if err != nil {
			return err
		}
		m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: res.Type, Nonce: res.Nonce, RemovedResources: res.Removed}
		for _, x := range res.Resources {
			m.Resources = append(m.Resources, &discoveryv3.Resource{Name: x.Name, Version: x.Version, Resource: &anypb.Any{TypeUrl: x.Type, Value: x.Body}})
		}
		return s.Request(distribute.Request{Type: res.Type, Nonce: res.Nonce})
	}
	e := distribute.New(distribute.Params{})
	for _, name := range l.content {
		if err := set(e, name, 0); err != nil {
			return 0, err
		}
	}
	var affected []*distribute.Subscriber
	for i := range fleet {
		s := e.Attach(distribute.SubscriberParams{ID: fmt.Sprint("p", i), Scopes: []distribute.Scope{distribute.Scope(fmt.Sprint("proxy/", i)), all}})
		defer s.Close()
		if err := s.Request(distribute.Request{Type: clusterType, Subscribe: l.ask(i)}); err != nil {
			return 0, err
		}
		if err := deliver(s); err != nil {
			return 0, err
		}
		if l.affected(i) {
			affected = append(affected, s)
		}
	}
	return cpuPerRound(r, func(round int) error {
		if err := set(e, l.change, round); err != nil {
			return err
		}
		for _, s := range affected {
			if err := deliver(s); err != nil {
				return err
			}
		}
		return nil
	})
}

// linearPeer is a subscriber of the LinearCache.
type linearPeer struct {
	cache *cache.LinearCache
	sub   stream.Subscription
	ch    chan cache.DeltaResponse
}

func (p *linearPeer) open(nonce string) error {
	_, err := p.cache.CreateDeltaWatch(&cache.DeltaRequest{TypeUrl: clusterType, ResponseNonce: nonce}, p.sub, p.ch)
	return err
}

func (p *linearPeer) receive() error {
	res := <-p.ch
	if _, err := res.GetDeltaDiscoveryResponse(); err != nil {
		return err
	}
	p.sub.SetReturnedResources(res.GetNextVersionMap())
	return p.open("1")
}

func linearCPU(r *run, l fleetLoad, fleet int) (float64, error) {
	c := cache.NewLinearCache(clusterType)
	first := map[string]types.Resource{}
	for _, name := range l.content {
		first[name] = benchCluster(name, 0)
	}
	c.SetResources(first)
	var affected []*linearPeer
	for i := range fleet {
		p := &linearPeer{cache: c, sub: stream.NewDeltaSubscription(l.ask(i), nil, nil, true), ch: make(chan cache.DeltaResponse, 1)}
		if err := p.open(""); err != nil {
			return 0, err
		}
		if err := p.receive(); err != nil {
			return 0, err
		}
		if l.affected(i) {
			affected = append(affected, p)
		}
	}
	return cpuPerRound(r, func(round int) error {
		if err := c.UpdateResource(l.change, benchCluster(l.change, round)); err != nil {
			return err
		}
		for _, p := range affected {
			if err := p.receive(); err != nil {
				return err
			}
		}
		return nil
	})
}
