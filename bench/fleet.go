package main

import (
	"context"
	"fmt"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
)

const memoryDocs = `apiVersion: v1
kind: Service
metadata: {name: api, namespace: bench}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api-1, namespace: bench}
spec: {address: 10.0.0.1, labels: {app: api}, serviceAccount: api}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api-2, namespace: bench}
spec: {address: 10.0.0.2, labels: {app: api}, serviceAccount: api}
---
`

// fleet is a control plane that grows from one agent with 50 proxies to all
// its agents with 50 each, every proxy with a configuration of its own: how
// long that takes, and what its resident memory grows by.
func fleet(ctx context.Context, r *run) ([]Row, error) {
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, memoryDocs+identity("api", "unix:uid:1")+identity("web", "unix:uid:2")); err != nil {
		return nil, err
	}
	hosts := of(r, agents, 10)
	proxies := hosts * localProxies
	idle, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	first, err := attachNodes(ctx, p, 0, 1)
	if err != nil {
		return nil, err
	}
	defer first.close()
	if err := first.watch(p, 0); err != nil {
		return nil, err
	}
	start := time.Now()
	rest, err := attachNodes(ctx, p, 1, hosts-1)
	if err != nil {
		return nil, err
	}
	defer rest.close()
	took := time.Since(start)
	before, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	start = time.Now()
	if err := rest.watch(p, 1); err != nil {
		return nil, err
	}
	took += time.Since(start)
	after, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	r.say("control plane: %.1f MB idle, %.1f MB with %d agents, %.1f MB with %d proxies", idle/1e6, before/1e6, hosts, after/1e6, proxies)
	return []Row{
		atMost(fmt.Sprintf("%d to %d proxies attached and configured", localProxies, proxies), took.Seconds(), "s", 10),
		atMost("control plane memory per attached proxy", (after-before)/float64(proxies-localProxies)/1e3, "KB", 50),
		fact("control plane memory per attached agent (connection, streams)", (before-idle)/float64(hosts)/1e3, "KB"),
		fact("control plane memory, idle", idle/1e6, "MB").beside("SPIRE 1.15.3", 149),
	}, nil
}

// resourcesEach is what every proxy holds: two listeners, a cluster each, and
// the endpoints of the outbound one.
const resourcesEach = 5

// watch asks for the configuration of 50 proxies on each node and waits until
// every one has it.
func (ns *nodes) watch(p *plane, first int) error {
	for n, link := range ns.links {
		for i := range localProxies {
			port := 10000 + (first+n)*localProxies + i
			link.WatchSubject(&nodev1.Subject{Id: fmt.Sprintf("session-%d", i), Entry: "bench/web", SpiffeId: idOf("web"), Mode: nodev1.Mode_MODE_EXPLICIT,
				Inbound:  []*nodev1.Inbound{{Listen: fmt.Sprintf("0.0.0.0:%d", port), App: "127.0.0.1:8080"}},
				Outbound: []*nodev1.Outbound{{Service: "api", Port: 80, Listen: fmt.Sprintf("127.0.0.1:%d", port+10000)}}})
		}
	}
	want := int64(len(ns.links) * localProxies * resourcesEach)
	if err := p.until(60*time.Second, "all proxies are configured", func() bool { return ns.configured.Load() >= want }); err != nil {
		return fmt.Errorf("%d of %d: %w", ns.configured.Load(), want, err)
	}
	if got := ns.configured.Load(); got != want {
		return fmt.Errorf("%d resources instead of %d", got, want)
	}
	return nil
}

// settledRSS is the resident memory once it has stood still for a second.
func settledRSS(pid int) (float64, error) {
	last, err := rss(pid)
	if err != nil {
		return 0, err
	}
	for since, deadline := time.Now(), time.Now().Add(4*time.Second); time.Since(since) < time.Second && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		now, err := rss(pid)
		if err != nil {
			return 0, err
		}
		if now > last*1.01 || now < last*0.99 {
			since = time.Now()
		}
		last = now
	}
	return last, nil
}
