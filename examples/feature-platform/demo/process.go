package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is one that this run started and ends.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start runs argv with its output in a log file.
func (d *demo) start(name string, argv []string, env ...string) (*process, error) {
	log := filepath.Join(d.work, name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process: it ends the others in order
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() { // ends with the process
		_ = cmd.Wait()
		close(p.done)
	}()
	d.procs = append(d.procs, p)
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %s\n%s", p.name, p.cmd.ProcessState, p.tail(12))
	default:
		return nil
	}
}

func (p *process) tail(n int) string {
	raw, _ := os.ReadFile(p.log)
	lines := strings.SplitAfter(string(raw), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// until polls a condition; the last error is reported when time is up.
func until(ctx context.Context, limit time.Duration, what string, ok func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		var final finalError
		if errors.As(err, &final) || time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// finalError will not go away by waiting.
type finalError struct{ error }

// output runs argv and decodes its JSON answer.
func output(ctx context.Context, into any, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// legation asks the control plane.
func (d *demo) legation(ctx context.Context, into any, args ...string) error {
	return output(ctx, into, append([]string{d.tool("legation"), "--server", "unix://" + d.server, "-o", "json"}, args...)...)
}

// agent asks a node's agent.
func (d *demo) agent(ctx context.Context, n *node, into any, args ...string) error {
	return output(ctx, into, append([]string{d.tool("legation"), "--agent", "unix://" + n.admin, "-o", "json"}, args...)...)
}
