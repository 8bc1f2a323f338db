// Command demo is "make demo": it starts a control plane, two agents and a
// small feature platform whose programs know nothing of TLS, and shows, with
// measurements of this run, that they talk only through mutual TLS, that who
// should be refused is refused, that certificates rotate under load, and that
// an identity can be taken away. It exits non-zero when any line is not so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const trustDomain = "demo.legation.io"

// demo is one run.
type demo struct {
	bin      string // folder with legation and legation-agent
	source   string // folder of this example
	work     string // everything this run writes
	explicit bool   // local ports instead of capture
	keep     bool
	out      *report
	host     hosts
	procs    []*process
	server   string // admin socket
	nodes    []*node
	services []*service
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		os.Exit(probeMain(os.Args[2:]))
	}
	var d demo
	flag.StringVar(&d.bin, "bin", "bin", "folder with legation and legation-agent")
	flag.StringVar(&d.source, "source", "examples/feature-platform", "folder of the example")
	flag.BoolVar(&d.explicit, "explicit", os.Geteuid() != 0, "explicit local ports instead of capture in network namespaces (needs root)")
	flag.BoolVar(&d.keep, "keep", os.Getenv("KEEP") == "1", "leave it up to explore")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := d.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// errInterrupted is Ctrl-C, or a signal to end.
var errInterrupted = errors.New("interrupted; what it started was ended and removed")

func (d *demo) run(ctx context.Context) (err error) {
	d.out = newReport(os.Stdout)
	if d.bin, err = filepath.Abs(d.bin); err != nil {
		return err
	}
	if d.source, err = filepath.Abs(d.source); err != nil {
		return err
	}
	if d.work, err = os.MkdirTemp("", "legation-demo-"); err != nil {
		return err
	}
	if err := os.Chmod(d.work, 0o755); err != nil { // programs of other users find their sockets here
		return err
	}
	defer func() {
		d.cleanup()
		if err != nil && !errors.Is(err, errInterrupted) && !errors.Is(err, errNotSo) {
			err = fmt.Errorf("%w\nlogs are kept in %s", err, d.work)
			return
		}
		os.RemoveAll(d.work)
	}()
	if d.explicit {
		d.host = &loopback{}
	} else {
		d.host = newNamespaces()
	}
	started := time.Now()
	d.out.title("Legation: from nothing to enforced mutual TLS")
	d.out.say("in the path by %s", d.host.describe())
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"network", func(context.Context) error {
			return d.host.setup([]string{"ingestion", "featurestore", "retrieval", "model", "stranger"})
		}},
		{"control plane", d.startControlPlane},
		{"two nodes join", d.startAgents},
		{"identities and services are declared", d.declare},
		{"four services start, each with its own Envoy", d.startServices},
		{"events flow", d.waitFlow},
		{"hops", d.hops},
		{"refusals", d.refusals},
		{"rotation", d.rotation},
		{"revocation", d.revocation},
	} {
		if err := d.out.step(step.name, func() error { return step.do(ctx) }); err != nil {
			if ctx.Err() != nil {
				return errInterrupted
			}
			d.showLogs()
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	d.out.say("")
	d.out.say("done in %.0f s", time.Since(started).Seconds())
	if d.keep {
		d.explore(ctx)
	}
	return d.out.verdict()
}

func (d *demo) explore(ctx context.Context) {
	d.out.title("It stays up until Ctrl-C. Try:")
	sock := "LEGATION_SERVER=unix://" + d.server
	d.out.say("export %s LEGATION_AGENT=unix://%s PATH=%s:$PATH", sock, d.nodes[0].admin, d.bin)
	for _, line := range []string{
		"legation status", "legation cert list -o wide", "legation get all -A", "legation connections -o wide",
		"legation connections --failures", "legation why --pid PID", "legation lift spiffe://" + trustDomain + "/ns/default/sa/ingestion",
		"curl -s http://" + d.nodes[0].metrics + "/metrics | grep legation_proxy",
	} {
		d.out.say("  %s", line)
	}
	d.out.say("logs: %s", d.work)
	<-ctx.Done()
}

func (d *demo) showLogs() {
	for _, p := range d.procs {
		if tail := p.tail(12); tail != "" {
			fmt.Fprintf(os.Stderr, "\n--- last lines of %s\n%s", p.name, tail)
		}
	}
}

func (d *demo) cleanup() {
	for i := len(d.procs) - 1; i >= 0; i-- {
		d.procs[i].stop()
	}
	d.host.teardown()
}

func (d *demo) tool(name string) string { return filepath.Join(d.bin, name) }

func id(service string) string {
	return "spiffe://" + trustDomain + "/ns/default/sa/" + service
}

func short(spiffeID string) string {
	return strings.TrimPrefix(spiffeID, "spiffe://"+trustDomain)
}
