package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRowSaysWhetherItsBudgetIsMet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		row   Row
		ratio float64
		met   bool
	}{
		{"a value at its budget", atMost("x", 10, "ms", 10), 0, true},
		{"a value over its budget", atMost("x", 10.1, "ms", 10), 0, false},
		{"a ratio at its bound", fact("x", 105, "s").beside("peer", 100).ratioAtMost(1.05), 1.05, true},
		{"a ratio over its bound", fact("x", 106, "s").beside("peer", 100).ratioAtMost(1.05), 1.06, false},
		{"a ratio below what is asked", fact("x", 59, "/s").beside("floor", 100).ratioAtLeast(0.6), 0.59, false},
		{"a peer of zero gives no ratio, and no budget is met", fact("x", 1, "s").beside("peer", 0).ratioAtMost(1), 0, false},
		{"a row without a budget", fact("x", 1, "s"), 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ratio := 0.0
			if tt.row.Ratio != nil {
				ratio = *tt.row.Ratio
			}
			if ratio != tt.ratio || tt.row.Met != tt.met {
				t.Errorf("ratio %v, met %v; want %v, %v", ratio, tt.row.Met, tt.ratio, tt.met)
			}
		})
	}
}

func TestResultsHaveTheFieldsThatReadersExpect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out", "results.json")
	if err := writeRows(path, []Row{fact("x", 1.23456, "ms").beside("peer", 2).ratioAtMost(1)}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"name": "x", "value": 1.235, "unit": "ms", "limit": 2.0, "ratio": 0.6175, "budget": "ratio <= 1", "met": true} {
		if got[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got[0][key], want)
		}
	}
	if len(got[0]) != 7 {
		t.Errorf("fields %v", got[0])
	}
}

func TestTableNamesWhatIsMissed(t *testing.T) {
	var out strings.Builder
	printTable(&out, []Row{atMost("slow thing", 3, "ms", 2), fact("plain fact", 1, "s")})
	for _, want := range []string{"slow thing  3 ms", "<= 2 ms", "NO", "plain fact", "budgets missed: 1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

func TestPercentilesAreByNearestRank(t *testing.T) {
	var all times
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Millisecond)
	}
	if all.p50() != 50 || all.p99() != 99 || all.percentile(100) != 100 || (times{}).p99() != 0 {
		t.Errorf("p50 %v, p99 %v, worst %v", all.p50(), all.p99(), all.percentile(100))
	}
}

func TestFanReturnsOnlyWhenEveryReaderHasTheBytes(t *testing.T) {
	f, err := newFan("unix", filepath.Join(t.TempDir(), "s"), 5)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	for range 3 {
		if _, err := f.send(100_000); err != nil || len(f.arrived) != 0 {
			t.Fatalf("%v, %d arrivals left over", err, len(f.arrived))
		}
	}
}

func TestLoadKeepsItsRateAndItsChain(t *testing.T) {
	b, err := startBackend()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	c := newCaller(b.address, chainPath(3, b.address), 4)
	defer c.close()
	got, err := c.load(context.Background(), 100, 200*time.Millisecond)
	if err != nil || len(got) == 0 || len(got) > 24 {
		t.Fatalf("%d answers, %v; at most about 20 were asked for", len(got), err)
	}
}

func TestChildIsEndedAndItsCPUIsRead(t *testing.T) {
	c, err := startChild([]string{"sleep", "60"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cpuOf(c.pid); err != nil {
		t.Error(err)
	}
	if got, err := rss(c.pid); err != nil || got <= 0 {
		t.Errorf("resident %v, %v", got, err)
	}
	if err := c.stop(); err != nil {
		t.Error(err)
	}
	if _, err := cpuOf(c.pid); err == nil {
		t.Error("an ended child still has a CPU clock")
	}
}
