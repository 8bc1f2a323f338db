package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// child is a process that this one started and ends.
type child struct {
	pid    int
	exited chan struct{}
	output *tail
}

func startChild(argv []string, env ...string) (*child, error) {
	c := &child{exited: make(chan struct{}), output: &tail{}}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdout, cmd.Stderr = c.output, c.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() { // stop waits for it
		// Pdeathsig is about the thread that started the child: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return c, nil
}

// until polls a condition, and fails at once when the child ends.
func (c *child) until(d time.Duration, what string, ok func() bool) error {
	deadline := time.Now().Add(d)
	for !ok() {
		select {
		case <-c.exited:
			return fmt.Errorf("waiting until %s: process %d ended; it said:\n%s", what, c.pid, c.output)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain until %s; process %d said:\n%s", d, what, c.pid, c.output)
		}
	}
	return nil
}

// stop ends the child, kindly for five seconds.
func (c *child) stop() error {
	if c == nil {
		return nil
	}
	signal := func(s syscall.Signal) {
		select {
		case <-c.exited: // the pid may be another's now
		default:
			_ = syscall.Kill(c.pid, s)
		}
	}
	signal(syscall.SIGTERM)
	select {
	case <-c.exited:
		return nil
	case <-time.After(5 * time.Second):
	}
	signal(syscall.SIGKILL)
	<-c.exited
	return errors.New("a process did not end within 5 s of SIGTERM and was killed")
}

// tail keeps the last 64 KiB written.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if extra := t.buf.Len() - 64<<10; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
