package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// coldStart is from a process's start to its SVID, against a warm agent: the
// light client beside the full one, go-spiffe, and a program that does
// nothing, in turns.
func coldStart(ctx context.Context, r *run) ([]Row, error) {
	defer calmGC()()
	p, err := startPlane(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := p.apply(ctx, identity("self", self())); err != nil {
		return nil, err
	}
	n, err := newNode(ctx, r, p, "node-0")
	if err != nil {
		return nil, err
	}
	defer n.close()
	if _, err := n.start(ctx, r); err != nil {
		return nil, err
	}
	programs := map[string]string{}
	sizes := map[string]float64{}
	for _, name := range []string{"light", "full", "gospiffe", "nothing"} {
		path := filepath.Join(r.dir, "coldstart-"+name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./bench/coldstart/"+name)
		cmd.Dir, cmd.Env = r.root, append(os.Environ(), "CGO_ENABLED=0")
		if talk, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", name, err, talk)
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		programs[name], sizes[name] = path, float64(info.Size())/1e6
	}
	variants := []struct {
		argv []string
		says string
	}{
		{[]string{programs["light"]}, idOf("self")}, {[]string{programs["light"], "sds"}, idOf("self")}, {[]string{programs["full"]}, idOf("self")},
		{[]string{programs["gospiffe"]}, idOf("self")}, {[]string{programs["nothing"]}, "nothing"},
	}
	took := make([]times, len(variants))
	lines := make([]string, len(variants))
	for i := range of(r, 300, 60) + 5 {
		for v, variant := range variants {
			t, line, err := toFirstLine(ctx, n.socket, variant.argv)
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(line, variant.says) {
				return nil, fmt.Errorf("%v said %q", variant.argv, line)
			}
			if lines[v] = line; i >= 5 { // in the page cache
				took[v] = append(took[v], t)
			}
		}
	}
	light, sds, full, gospiffe, nothing := took[0], took[1], took[2], took[3], took[4]
	var wire, der, pem, sdsWire float64
	if _, err := fmt.Sscanf(strings.TrimPrefix(lines[0], idOf("self")), "%f %f %f", &wire, &der, &pem); err != nil {
		return nil, fmt.Errorf("%q: %w", lines[0], err)
	}
	if _, err := fmt.Sscanf(strings.TrimPrefix(lines[1], idOf("self")), "%f", &sdsWire); err != nil {
		return nil, fmt.Errorf("%q: %w", lines[1], err)
	}
	const what = "cold start, process start to SVID, "
	return []Row{
		fact("cold start of a Go program that does nothing, p50", nothing.p50(), "ms"),
		atMost(what+"sdk/light, p50", light.p50(), "ms", 5).beside("go-spiffe", gospiffe.p50()),
		fact(what+"sdk/light, p99", light.p99(), "ms").beside("go-spiffe", gospiffe.p99()),
		fact(what+"sdk/light by SDS, p50", sds.p50(), "ms").beside("go-spiffe", gospiffe.p50()),
		fact(what+"sdk/workloadapi, p50", full.p50(), "ms").beside("go-spiffe", gospiffe.p50()),
		fact(what+"sdk/workloadapi, p99", full.p99(), "ms").beside("go-spiffe", gospiffe.p99()),
		fact("first answer on the wire, Workload API (DER)", wire, "B").beside("SDS (PEM)", sdsWire),
		fact("the same keys, certificates and lists, DER", der, "B").beside("PEM", pem),
		fact("program with sdk/light, stripped", sizes["light"], "MB").beside("with go-spiffe", sizes["gospiffe"]),
		fact("program with sdk/workloadapi, stripped", sizes["full"], "MB").beside("with go-spiffe", sizes["gospiffe"]),
	}, nil
}

// toFirstLine starts a program and returns how long its first line took.
func toFirstLine(ctx context.Context, socket string, argv []string) (time.Duration, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=unix://"+socket)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, "", err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, "", err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begun)
	if err := cmd.Wait(); err != nil {
		return 0, "", fmt.Errorf("%v: %w", argv, err)
	}
	return took, line, readErr
}
