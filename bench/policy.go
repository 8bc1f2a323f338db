package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	sdkpolicy "github.com/legation-io/legation/sdk/policy"
)

// policyDecisions is one decision of the example policy of the feature
// platform, in process, beside OPA's own prepared query with the same input,
// parsed already. The collector runs as it would in a service.
func policyDecisions(ctx context.Context, r *run) ([]Row, error) {
	p, err := sdkpolicy.Directory{Path: filepath.Join(r.root, "sdk", "policy", "examples", "feature-platform")}.Load()
	if err != nil {
		return nil, err
	}
	engine, err := sdkpolicy.New(ctx, sdkpolicy.Config{LogPerSecond: -1}, p)
	if err != nil {
		return nil, err
	}
	in := sdkpolicy.Input{
		Identity: spiffeid.RequireFromString("spiffe://platform.example/ns/retail/sa/retrieval"), Operation: "predict",
		Resource: sdkpolicy.Resource{Type: "llm", Name: "ranker"},
		Request:  sdkpolicy.Request{Method: "POST", Path: "/v1/models/ranker:predict"},
	}
	if d := engine.Decide(ctx, &in); !d.Allowed {
		return nil, fmt.Errorf("the example policy denies what it should allow: %s %s", d.Cause, d.Detail)
	}
	var data map[string]any
	if err := json.Unmarshal(p.Data, &data); err != nil {
		return nil, err
	}
	prepared, err := rego.New(rego.Query(sdkpolicy.DefaultQuery), rego.Module("roles.rego", p.Modules["roles.rego"]),
		rego.Store(inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true)))).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	heap := make([]byte, 64<<20) // a service's, so that the collector is as rare as there
	heap[0] = 1
	ours := func() error {
		if d := engine.Decide(ctx, &in); !d.Allowed {
			return fmt.Errorf("the example policy denies what it should allow: %s %s", d.Cause, d.Detail)
		}
		return nil
	}
	theirs := func() error {
		set, err := prepared.Eval(ctx, rego.EvalParsedInput(in.Value()))
		if err == nil && !set.Allowed() {
			err = fmt.Errorf("denied")
		}
		return err
	}
	const rounds, each = 20, 1000
	var took, peer times
	for range rounds {
		for f, into := range map[*func() error]*times{&ours: &took, &theirs: &peer} {
			for range each {
				began := time.Now()
				if err := (*f)(); err != nil {
					return nil, err
				}
				*into = append(*into, time.Since(began))
			}
		}
	}
	heap[1] = heap[0]
	allocations := testing.AllocsPerRun(1000, func() { _ = ours() })
	cpu, err := cpuMicros(20_000, ours)
	if err != nil {
		return nil, err
	}
	peerCPU, err := cpuMicros(20_000, theirs)
	if err != nil {
		return nil, err
	}
	return []Row{
		fact("policy decision, p50", took.p50()*1e3, "µs").beside("rego.PreparedEvalQuery", peer.p50()*1e3),
		atMost("policy decision, p99", took.p99()*1e3, "µs", 20).beside("rego.PreparedEvalQuery", peer.p99()*1e3),
		fact("policy decision, CPU", cpu, "µs").beside("rego.PreparedEvalQuery", peerCPU),
		fact("policy decision, allocations", allocations, ""),
	}, nil
}
