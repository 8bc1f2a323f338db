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

// proxyMemory is what the control plane's resident memory grows by per attached
// proxy: agents with 50 each, every one with a configuration of its own.
func proxyMemory(ctx context.Context, r *run) ([]Row, error) {
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, memoryDocs+identity("api", "unix:uid:1")+identity("web", "unix:uid:2")); err != nil {
		return nil, err
	}
	attached := of(r, 2000, 500)
	idle, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	ns, err := attachNodes(ctx, p, 0, attached/localProxies)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	before, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	for n, link := range ns.links {
		for i := range localProxies {
			port := 10000 + n*localProxies + i
			link.WatchSubject(&nodev1.Subject{Id: fmt.Sprintf("session-%d", i), Entry: "bench/web", SpiffeId: idOf("web"), Mode: nodev1.Mode_MODE_EXPLICIT,
				Inbound:  []*nodev1.Inbound{{Listen: fmt.Sprintf("0.0.0.0:%d", port), App: "127.0.0.1:8080"}},
				Outbound: []*nodev1.Outbound{{Service: "api", Port: 80, Listen: fmt.Sprintf("127.0.0.1:%d", port+10000)}}})
		}
	}
	if err := p.until(30*time.Second, "all proxies are configured", func() bool { return ns.configured.Load() >= int64(attached) }); err != nil {
		return nil, fmt.Errorf("%d of %d: %w", ns.configured.Load(), attached, err)
	}
	after, err := settledRSS(p.pid)
	if err != nil {
		return nil, err
	}
	r.say("control plane: %.1f MB idle, %.1f MB with %d agents, %.1f MB with %d proxies", idle/1e6, before/1e6, len(ns.links), after/1e6, attached)
	return []Row{
		atMost(fmt.Sprintf("control plane memory per attached proxy (%d on %d agents)", attached, len(ns.links)), (after-before)/float64(attached)/1e3, "KB", 50),
		fact("control plane memory per attached agent (connection, trust stream)", (before-idle)/float64(len(ns.links))/1e3, "KB"),
		fact("control plane memory, idle", idle/1e6, "MB").beside("SPIRE 1.15.3 (PEERS.md)", 149),
	}, nil
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
