package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// twin is one thing done by the SDK and by plain crypto/tls with the same
// settings and certificates, in this process.
type twin struct {
	name       string
	ours, peer func(n int) error // n operations
	n          int               // operations in a turn
	budget     float64
	close      func()
}

// twins in the order of the table.
var twins = []func(*sdkWorld) (*twin, error){
	func(w *sdkWorld) (*twin, error) { return w.httpRequests("HTTP/1.1 request", "http/1.1") },
	func(w *sdkWorld) (*twin, error) { return w.httpRequests("HTTP/2 request", "h2") },
	func(w *sdkWorld) (*twin, error) { return w.grpcCalls() },
	func(w *sdkWorld) (*twin, error) { return w.handshakes("handshake, 10,000 denials", sdkKnown) },
	func(w *sdkWorld) (*twin, error) { return w.handshakes("handshake, OCSP answers cached", sdkOCSP) },
	func(w *sdkWorld) (*twin, error) { return w.handshakes("handshake with a stranger", sdkStrangers) },
}

// sdk compares what the SDK costs with plain crypto/tls: client and server
// together, in one process, over loopback. The two take turns, many short
// ones, and each pair of turns gives one ratio: what else runs on the machine
// disturbs both alike. The collector runs between turns; allocations are
// counted in turns of their own.
func sdk(ctx context.Context, r *run) ([]Row, error) {
	w, err := newSDKWorld(sdkDenials)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, start := range twins {
		t, err := start(w)
		if err != nil {
			return nil, err
		}
		taken, err := t.take(ctx, of(r, 60, 10))
		t.close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		rows = append(rows, taken...)
	}
	return rows, nil
}

// sdkDenials is how many denials every chain is held against.
const sdkDenials = 10_000

// sdkCommand makes this program do n operations of one side of a twin, to be
// counted from outside: bench sdk-twin <index> ours|peer <n>.
const sdkCommand = "sdk-twin"

func doTwin(index, side, count string) error {
	i, err := strconv.Atoi(index)
	n, err2 := strconv.Atoi(count)
	if err = errors.Join(err, err2); err != nil || i < 0 || i >= len(twins) {
		return fmt.Errorf("no twin %s, %v", index, err)
	}
	w, err := newSDKWorld(sdkDenials)
	if err != nil {
		return err
	}
	t, err := twins[i](w)
	if err != nil {
		return err
	}
	defer t.close()
	// A process that waits for no timer at all schedules a little faster; the
	// SDK's has one, as nearly every program has.
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	if side == "ours" {
		return t.ours(n)
	}
	return t.peer(n)
}

// sdkInstructions counts what the processor executes for the same, by
// valgrind, whose count hardly varies whatever else runs: the difference
// between a run with many operations and one with few. It needs valgrind.
func sdkInstructions(ctx context.Context, r *run) ([]Row, error) {
	if _, err := exec.LookPath("valgrind"); err != nil {
		r.say("instructions are not counted: valgrind is not installed")
		return nil, nil
	}
	w, err := newSDKWorld(0)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for i, start := range twins {
		t, err := start(w)
		if err != nil {
			return nil, err
		}
		t.close()
		if t.budget == 0 {
			continue
		}
		few := max(t.n/30, 3)
		many := few + max(t.n/of(r, 4, 10), 10)
		var runs errgroup.Group // the two sides at once
		var per [2]float64
		for s, side := range []string{"ours", "peer"} {
			runs.Go(func() error {
				least, err := instructions(ctx, i, side, few)
				if err != nil {
					return err
				}
				most, err := instructions(ctx, i, side, many)
				per[s] = (most - least) / float64(many-few) / 1e3
				return err
			})
		}
		if err := runs.Wait(); err != nil {
			return nil, err
		}
		rows = append(rows, fact("SDK "+t.name+", instructions", per[0], "k").beside("plain crypto/tls", per[1]).ratioAtMost(t.budget))
	}
	return rows, nil
}

var collected = regexp.MustCompile(`Collected : (\d+)`)

func instructions(ctx context.Context, twin int, side string, n int) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", self, sdkCommand, strconv.Itoa(twin), side, strconv.Itoa(n))
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("valgrind: %w: %s", err, out)
	}
	m := collected.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("valgrind tells no count: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

func (t *twin) take(ctx context.Context, rounds int) ([]Row, error) {
	for _, f := range []func(int) error{t.ours, t.peer, t.ours, t.peer} { // warm
		if err := f(t.n); err != nil {
			return nil, err
		}
	}
	ourAllocs, err := allocations(t.n, t.ours)
	if err != nil {
		return nil, err
	}
	peerAllocs, err := allocations(t.n, t.peer)
	if err != nil {
		return nil, err
	}
	before := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(before)
	var ours, peer, ratios []float64
	for round := range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		first, second := t.ours, t.peer
		if round%2 == 1 {
			first, second = second, first
		}
		a, err := cpuPer(t.n, first)
		if err != nil {
			return nil, err
		}
		b, err := cpuPer(t.n, second)
		if err != nil {
			return nil, err
		}
		if round%2 == 1 {
			a, b = b, a
		}
		ours, peer, ratios = append(ours, a), append(peer, b), append(ratios, a/b)
	}
	row := fact("SDK "+t.name+", CPU", median(ours), "us").beside("plain crypto/tls", median(peer))
	ratio := tidy(median(ratios)) // of turns beside each other
	row.Ratio = &ratio
	count := fact("SDK "+t.name+", allocations", ourAllocs, "").beside("plain crypto/tls", peerAllocs)
	if t.budget > 0 {
		row, count = row.ratioAtMost(t.budget), count.ratioAtMost(t.budget)
	}
	return []Row{row, count}, nil
}

// cpuPer is the CPU time of one operation in microseconds.
func cpuPer(n int, f func(int) error) (float64, error) {
	runtime.GC()
	before := ownCPU()
	err := f(n)
	return us(ownCPU()-before) / float64(n), err
}

// allocations of one operation: the least of several turns, since what runs
// beside (the runtime's own, connections that settle) only adds.
func allocations(n int, f func(int) error) (float64, error) {
	least := math.Inf(1)
	for range 5 {
		var a, b runtime.MemStats
		runtime.ReadMemStats(&a)
		if err := f(n); err != nil {
			return 0, err
		}
		runtime.ReadMemStats(&b)
		least = min(least, float64(b.Mallocs-a.Mallocs)/float64(n))
	}
	return least, nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
