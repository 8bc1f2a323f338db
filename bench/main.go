// Command bench measures the rows of the design's budget table, each beside
// its limit or peer in the same run. It prints a table, writes the rows as
// JSON, and says which budgets are missed; only a row that could not be
// measured makes it fail. docs/benchmarks.md says how each is taken.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"syscall"
	"time"
)

// patience bounds one measurement; none takes a quarter of it.
const patience = 3 * time.Minute

// measurement takes some rows.
type measurement struct {
	name string
	take func(context.Context, *run) ([]Row, error)
}

// measurements in the order of the table.
var measurements = []measurement{
	{"limits", limits},
	{"issuance", issuance},
	{"store", storeCommit},
	{"engine", engine},
	{"door", issuanceDoor},
	{"push", push},
	{"proxies", proxies},
	{"workload", workloadAPI},
	{"start", agentStart},
	{"coldstart", coldStart},
	{"fleet", fleet},
	{"pairs", pairs},
	{"hops", hops},
	{"tokens", tokenCosts},
	{"policy", policyDecisions},
	{"sdk", sdk},
	{"sdk-instructions", sdkInstructions},
}

// run is what measurements share.
type run struct {
	quick bool
	root  string // of the module
	dir   string // removed at the end; short enough for sockets
	talk  io.Writer
}

// of is the number to take in a full run, or the one for a quick run.
func of[T any](r *run, full, quick T) T {
	if r.quick {
		return quick
	}
	return full
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.talk, "  "+format+"\n", args...)
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == bareCommand {
		if err := serveBare(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 5 && os.Args[1] == sdkCommand {
		if err := doTwin(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	out := flag.String("out", "", "write the rows to this file, JSON")
	only := flag.String("only", "", "take only measurements whose name matches this regular expression")
	quick := flag.Bool("quick", false, "take fewer samples")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process to a file")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: -cpuprofile:", err)
			os.Exit(1)
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := bench(ctx, *out, *only, *quick)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		pprof.StopCPUProfile()
		os.Exit(1)
	}
}

func bench(ctx context.Context, out, only string, quick bool) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &run{quick: quick, root: root, dir: dir, talk: os.Stderr}
	began := machine()
	fmt.Fprintf(os.Stderr, "bench: %s\n", began)
	var rows []Row
	var failed error
	for _, m := range measurements {
		if !pattern.MatchString(m.name) || ctx.Err() != nil {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "%s\n", m.name)
		mctx, cancel := context.WithTimeout(ctx, patience)
		taken, err := m.take(mctx, r)
		cancel()
		if err != nil {
			err = fmt.Errorf("%s could not be measured: %w", m.name, err)
			failed = errors.Join(failed, err)
		}
		rows = append(rows, taken...)
		r.say("took %.1f s", time.Since(start).Seconds())
	}
	printTable(os.Stdout, rows)
	fmt.Printf("taken on %s; at the end %s\n", began, load())
	if out != "" {
		failed = errors.Join(failed, writeRows(out, rows))
	}
	return errors.Join(failed, ctx.Err())
}

func writeRows(path string, rows []Row) error {
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// moduleRoot is the folder of go.mod at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run this in the repository: make bench")
		}
		dir = up
	}
}
