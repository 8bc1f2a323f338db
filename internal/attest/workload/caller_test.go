package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/legation-io/legation/internal/fault"
	"go.uber.org/goleak"
)

func TestSelectorsOfACallerComeFromTheKernel(t *testing.T) {
	p := start(t, "wait")
	c := p.mustCaller(running(t))
	if int(c.PID()) != p.cmd.Process.Pid || int(c.UID()) != os.Geteuid() {
		t.Errorf("pid %d uid %d", c.PID(), c.UID())
	}
	got, err := c.Selectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(got) {
		t.Errorf("not sorted: %q", got)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	for _, want := range []Selector{
		fmt.Sprintf("unix:uid:%d", os.Geteuid()),
		fmt.Sprintf("unix:gid:%d", os.Getegid()),
		"unix:path:" + self,
		"unix:sha256:" + hex.EncodeToString(sum[:]),
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q misses %q", got, want)
		}
	}
	if os.Geteuid() == 0 && !(slices.Contains(got, "unix:user:root") && slices.Contains(got, "unix:group:root")) {
		t.Errorf("%q misses the names of root", got)
	}
	if err := c.Recheck(); err != nil {
		t.Errorf("Recheck of a process that did nothing: %v", err)
	}
}

func TestCostlySelectorsAreReadOnlyWhenWanted(t *testing.T) {
	c := start(t, "wait").mustCaller(NewAttestor(Params{Want: func() Want { return Want{} }}))
	got, err := c.Selectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range got {
		for _, costly := range []string{"unix:sha256:", "unix:user:", "unix:group:", "unix:supplementary_group:"} {
			if strings.HasPrefix(s, costly) {
				t.Errorf("nobody wanted %q", s)
			}
		}
	}
}

func TestDoneIsClosedWhenTheProcessEnds(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	p := start(t, "wait")
	c := p.mustCaller(running(t))
	select {
	case <-c.Done():
		t.Fatal("closed while the process lives")
	default:
	}
	p.kill()
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Fatal("not closed a minute after the process was killed")
	}
	if c.Alive() {
		t.Error("Alive after its end")
	}
	if _, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
		t.Errorf("selectors of a dead caller: %v", err)
	}
}

func TestCallersKnownBeforeRunAreWatchedToo(t *testing.T) {
	a := NewAttestor(Params{})
	p := start(t, "wait")
	done := p.mustCaller(a).Done()
	p.kill()
	ended := make(chan error, 1)
	ctx := t.Context()
	go func() { ended <- a.Run(ctx) }()
	select {
	case <-done:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("not closed")
	}
}

func TestA20TheIdentityIsThatOfTheProcessThatConnected(t *testing.T) {
	a := running(t)
	t.Run("it ends and a child goes on with the socket", func(t *testing.T) {
		p := start(t, "pass-and-die")
		c := p.mustCaller(a)
		if _, err := c.Selectors(t.Context()); err != nil {
			t.Fatal(err)
		}
		child, _ := strconv.Atoi(p.proceed(""))
		defer syscall.Kill(child, syscall.SIGKILL)
		<-c.Done()
		if err := c.Recheck(); !fault.Is(err, fault.Denied) {
			t.Errorf("Recheck: %v", err)
		}
		if _, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("Selectors: %v", err)
		}
		if _, err := p.caller(a); !fault.Is(err, fault.Denied) {
			t.Errorf("the socket attested anew: %v", err)
		}
	})
	t.Run("it executes another program", func(t *testing.T) {
		p := start(t, "exec")
		c := p.mustCaller(a)
		before, err := c.Selectors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(p.in)
		eventually(t, "Recheck notices", func() bool { return fault.Is(c.Recheck(), fault.Denied) })
		after, err := c.Selectors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(before, after) {
			t.Error("the same selectors for another program")
		}
	})
	t.Run("it changes its uid", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Fatal("needs root")
		}
		for _, mode := range []string{"setuid", "setgid"} {
			p := start(t, mode)
			c := p.mustCaller(a)
			if _, err := c.Selectors(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.proceed("done")
			if err := c.Recheck(); !fault.Is(err, fault.Denied) {
				t.Errorf("%s: Recheck: %v", mode, err)
			}
			if _, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
				t.Errorf("%s: Selectors: %v", mode, err)
			}
		}
	})
}

func TestAPathIsGivenOnlyIfItNamesTheFileThatRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	raw, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	c, err := running(t).FromPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Selectors(t.Context())
	if err != nil || !slices.Contains(got, "unix:path:"+path) {
		t.Fatalf("%q, %v", got, err)
	}
	// An upgrade replaces the file under the running program.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.Recheck(); err != nil {
		t.Errorf("an upgrade is no exec: %v", err)
	}
	os.Remove(path + ".old")
	got, err = c.Selectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range got {
		if strings.HasPrefix(s, "unix:path:") {
			t.Errorf("got %q for a program that lies nowhere", s)
		}
	}
}

func TestSelectorsForExecAreThoseOfTheFileToBeRun(t *testing.T) {
	p := start(t, "exec") // will run /bin/sleep
	c, err := running(t).FromPID(p.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	path, err := filepath.EvalSymlinks("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	promised, err := SelectorsForExec(t.Context(), c, file, path)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(promised, "unix:path:"+path) {
		t.Errorf("%q misses the path of the file", promised)
	}
	if err := c.Recheck(); !fault.Is(err, fault.Denied) {
		t.Errorf("Recheck before exec: %v", err)
	}
	fmt.Fprintln(p.in)
	eventually(t, "it runs the file", func() bool { return c.Recheck() == nil })
	got, err := c.Selectors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, promised) {
		t.Errorf("after exec %q, promised %q", got, promised)
	}

	t.Run("a wrong path is dropped", func(t *testing.T) {
		got, err := SelectorsForExec(t.Context(), c, file, "/bin/ls")
		if err != nil || slices.Contains(got, "unix:path:/bin/ls") {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a script is refused", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "x.sh")
		os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755)
		f, _ := os.Open(script)
		defer f.Close()
		if _, err := SelectorsForExec(t.Context(), c, f, script); !fault.Is(err, fault.Invalid) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a folder is refused", func(t *testing.T) {
		f, _ := os.Open(t.TempDir())
		defer f.Close()
		if _, err := SelectorsForExec(t.Context(), c, f, "/"); !fault.Is(err, fault.Invalid) {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheHashFollowsTheContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	h := newHashCache()
	for _, content := range []string{"one", "two", "six"} { // same size, same second
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		id, err := execID(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.sum(t.Context(), 1, path, id)
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256([]byte(content)); got != want {
			t.Errorf("%q has another content's hash", content)
		}
	}
}

// Two who keep the machine busy hold up nobody who gives up.
func TestWhoGivesUpDoesNotWaitForAHash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := execID(f)
	if err != nil {
		t.Fatal(err)
	}
	h := newHashCache()
	for range hashing {
		h.busy <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.sum(ctx, 1, path, id); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if len(h.busy) != hashing || len(h.lines) != 0 {
		t.Error("it gave back a place that it never had, or kept one")
	}
}

// A user who starts a thousand programs holds up no program of another.
func TestOneUsersHashesHoldUpNoOther(t *testing.T) {
	h := newHashCache()
	for range hashing {
		h.busy <- struct{}{}
	}
	turns, over := make(chan uint32), make(chan struct{})
	var all sync.WaitGroup
	begin := func(uid uint32, programs int) {
		for range programs {
			all.Go(func() {
				done, err := h.turn(t.Context(), uid)
				if err != nil {
					t.Error(err)
					return
				}
				defer done()
				turns <- uid
				<-over
			})
		}
		for in := 0; in < programs; time.Sleep(time.Millisecond) {
			h.mu.Lock()
			if l := h.lines[uid]; l != nil {
				in = l.in
			}
			h.mu.Unlock()
		}
		time.Sleep(50 * time.Millisecond) // they wait by now
	}
	begin(1, 100)
	begin(2, 1)
	<-h.busy // one after the other
	before := 0
	for n := range 101 {
		if <-turns == 2 {
			before = n
		}
		over <- struct{}{}
	}
	all.Wait()
	if before > 50 { // it is hashing, unless the machine is very busy
		t.Errorf("the other user waited for %d of 100", before)
	}
	if len(h.lines) != 0 || len(h.busy) != hashing-1 {
		t.Errorf("left: %d lines, %d places", len(h.lines), len(h.busy))
	}
}

// A09: a file of an exabyte costs nothing to make, and an age to read.
func TestAnEnormousExecutableIsNotHashed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("\x7fELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<42); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := start(t, "wait")
	started := time.Now()
	all, err := SelectorsForExec(t.Context(), p.mustCaller(running(t)), f, path)
	if err != nil || time.Since(started) > time.Minute { // of milliseconds
		t.Fatalf("%v after %s", err, time.Since(started))
	}
	for _, s := range all {
		if strings.HasPrefix(s, "unix:sha256:") {
			t.Errorf("it has %s", s)
		}
	}
}
