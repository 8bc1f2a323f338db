package policy_test

import (
	"context"
	"encoding/json"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/legation-io/legation/sdk/policy"
)

// BenchmarkDecide is the budget: p99 of at most 20 µs for the example policy.
func BenchmarkDecide(b *testing.B) {
	e := engine(b, policy.Config{}, platformPolicy(b))
	// The heap of a service: the collector's rounds are as rare as there.
	heap := make([][]byte, 64)
	for i := range heap {
		heap[i] = make([]byte, 1<<20)
	}
	defer runtime.KeepAlive(heap)
	for _, bb := range []struct {
		name  string
		input policy.Input
		want  bool
	}{
		{"allowed", ask("retail", "retrieval", "predict", "llm", "ranker"), true},
		{"denied", ask("retail", "ingestion", "predict", "llm", "ranker"), false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			if d := e.Decide(b.Context(), &bb.input); d.Allowed != bb.want {
				b.Fatal(d)
			}
			took := make([]time.Duration, 0, b.N)
			b.ReportAllocs()
			for b.Loop() {
				began := time.Now()
				e.Decide(b.Context(), &bb.input)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
		})
	}
}

// BenchmarkAlternatives asks the same by the ways that were not taken.
func BenchmarkAlternatives(b *testing.B) {
	p := platformPolicy(b)
	ctx := context.Background()
	var data map[string]any
	if err := json.Unmarshal(p.Data, &data); err != nil {
		b.Fatal(err)
	}
	in := ask("retail", "retrieval", "predict", "llm", "ranker")
	options := []func(*rego.Rego){rego.Query("data.legation.allow"), rego.Module("roles.rego", p.Modules["roles.rego"]),
		rego.Store(inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true)))}
	prepared, err := rego.New(options...).PrepareForEval(ctx)
	if err != nil {
		b.Fatal(err)
	}
	partial, err := rego.New(options...).PartialResult(ctx)
	if err != nil {
		b.Fatal(err)
	}
	partialPrepared, err := partial.Rego().PrepareForEval(ctx)
	if err != nil {
		b.Fatal(err)
	}
	document, err := ast.ValueToInterface(in.Value(), nil)
	if err != nil {
		b.Fatal(err)
	}
	e := engine(b, policy.Config{}, p)
	check := func(b *testing.B, set rego.ResultSet, err error) {
		if err != nil || !set.Allowed() {
			b.Fatal(set, err)
		}
	}
	b.Run("this package", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !e.Decide(ctx, &in).Allowed {
				b.Fatal("denied")
			}
		}
	})
	b.Run("rego prepared, parsed input", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			set, err := prepared.Eval(ctx, rego.EvalParsedInput(in.Value()))
			check(b, set, err)
		}
	})
	b.Run("rego prepared, input as maps", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			set, err := prepared.Eval(ctx, rego.EvalInput(document))
			check(b, set, err)
		}
	})
	b.Run("rego partial, parsed input", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			set, err := partialPrepared.Eval(ctx, rego.EvalParsedInput(in.Value()))
			check(b, set, err)
		}
	})
	b.Run("input document alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = in.Value()
		}
	})
}
