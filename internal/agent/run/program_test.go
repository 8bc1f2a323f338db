package run

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// The test binary is also the waiting child, and a parent that dies.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 3 && os.Args[1] == StubCommand:
		os.Exit(Stub(os.Args[2], os.Args[3:]))
	case os.Getenv("RUN_TEST_PARENT") != "":
		c, err := startStopped(resolved{path: "/bin/sleep", argv: []string{"sleep", "60"}}, nil, os.Environ())
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if os.Getenv("RUN_TEST_PARENT") == "released" {
			if err := c.release(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		fmt.Println(c.cmd.Process.Pid)
		select {} // until it is killed
	}
	os.Exit(m.Run())
}

func script(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func real(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatIsAttestedIsWhatTheKernelWillRun(t *testing.T) {
	sh := real(t, "sh")
	plain := script(t, "plain", "#!/bin/sh\necho\n")
	option := script(t, "option", "#! /bin/sh -e -u \necho\n")
	tabbed := script(t, "tabbed", "#!/bin/sh\t-e\necho\n")
	env := script(t, "env", "#!/usr/bin/env sh\necho\n")
	envTab := script(t, "envtab", "#!/usr/bin/env\tsh\necho\n")
	split := script(t, "split", "#!/usr/bin/env -S sh -e\necho\n")
	nested := script(t, "nested", "#!"+option+" more\necho\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(sh, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		argv, want []string
	}{
		{"a program by its name", sh, []string{"sh", "-c", "x"}, []string{"sh", "-c", "x"}},
		{"a program by a link, which keeps the name it was called by", sh, []string{link, "x"}, []string{link, "x"}},
		{"a script runs as its interpreter", sh, []string{plain, "x"}, []string{"/bin/sh", plain, "x"}},
		{"all after the interpreter is one argument", sh, []string{option, "x"}, []string{"/bin/sh", "-e -u", option, "x"}},
		{"a tab separates too", sh, []string{tabbed}, []string{"/bin/sh", "-e", tabbed}},
		{"env is seen through", sh, []string{env, "x"}, []string{"sh", env, "x"}},
		{"env after a tab too", sh, []string{envTab, "x"}, []string{"sh", envTab, "x"}},
		{"env with options is what runs", real(t, "env"), []string{split, "x"}, []string{"/usr/bin/env", "-S sh -e", split, "x"}},
		{"an interpreter that is a script", sh, []string{nested, "x"}, []string{"/bin/sh", "-e -u", option, "more", nested, "x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := resolve(tt.argv)
			if err != nil || r.path != tt.path || !slices.Equal(r.argv, tt.want) {
				t.Errorf("%s %q (%v), want %s %q", r.path, r.argv, err, tt.path, tt.want)
			}
		})
	}
	loop := script(t, "loop", "")
	if err := os.WriteFile(loop, []byte("#!"+loop+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	locked := script(t, "locked", "#!/bin/sh\n")
	if err := os.Chmod(locked, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		path string
		code int
	}{
		"nothing of that name":               {"no-such-program-here", 127},
		"a script of nobody":                 {script(t, "nobody", "#!/no/such/interpreter\n"), 127},
		"a script of an unknown program":     {script(t, "unknown", "#!/usr/bin/env no-such-program-here\n"), 127},
		"an empty first line":                {script(t, "empty", "#!\necho\n"), 127},
		"a script that interprets itself":    {loop, 127},
		"what may not be executed":           {locked, 126},
		"a folder":                           {t.TempDir(), 126},
		"a script whose interpreter is none": {script(t, "blank", "#!  \t \n"), 127},
	} {
		if _, err := resolve([]string{row.path}); err == nil || notRun(err) != row.code || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v, exit code %d, want %d", name, err, notRun(err), row.code)
		}
	}
}

// begin starts a waiting child whose output is read.
func begin(t *testing.T, argv ...string) *child {
	t.Helper()
	runtime.LockOSThread() // the child dies with its parent's thread
	t.Cleanup(runtime.UnlockOSThread)
	r, err := resolve(argv)
	if err != nil {
		t.Fatal(err)
	}
	c, err := startStopped(r, nil, append(os.Environ(), "GIVEN=1"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheChildWaitsAndThenIsTheProgram(t *testing.T) {
	// No $(ls …): a shell closes its end of that pipe sooner or later.
	const tell = `echo "$0 $1 $GIVEN $(ulimit -Sn)"; ls /proc/$$/fd; exit 7`
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 300, Max: limit.Max}))
	defer func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)) }()
	direct := exec.Command("sh", "-c", tell, "name", "argument")
	direct.Env = append(os.Environ(), "GIVEN=1")
	want, err := direct.Output()
	if exitCode(err) != 7 {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stdout := os.Stdout
	os.Stdout = out
	c := begin(t, "sh", "-c", tell, "name", "argument")
	os.Stdout = stdout
	pid := c.cmd.Process.Pid
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || exe == real(t, "sh") {
		t.Errorf("before it may, it runs %s (%v)", exe, err)
	}
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(c.cmd.Wait()); code != 7 {
		t.Errorf("exit code %d", code)
	}
	got, err := os.ReadFile(out.Name())
	if err != nil || string(got) != string(want) {
		t.Errorf("it finds %q, and without us %q: its arguments, environment, limit of open files and descriptors", got, want)
	}
}

func TestExitCodesAreAShells(t *testing.T) {
	for command, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -TERM $$": 143, "kill -KILL $$": 137, "kill -INT $$": 130} {
		c := begin(t, "sh", "-c", command)
		if err := c.release(); err != nil {
			t.Fatal(err)
		}
		if code := exitCode(c.cmd.Wait()); code != want {
			t.Errorf("%s: %d, want %d", command, code, want)
		}
	}
	if code := exitCode(errors.New("not waited for")); code != 1 {
		t.Errorf("an error of ours is %d", code)
	}
}

func TestAFailureToExecuteIsTold(t *testing.T) {
	c := begin(t, script(t, "text", "this is no program\n"))
	defer c.abandon()
	err := c.release()
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), syscall.ENOEXEC.Error()) || !strings.Contains(err.Error(), "text") {
		t.Errorf("told %v", err)
	}
}

func TestAnAbandonedChildNeverRuns(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := begin(t, "sh", "-c", "echo > "+out)
	pid := c.cmd.Process.Pid
	c.abandon()
	if _, err := os.Stat(out); err == nil {
		t.Error("it ran")
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("it is there still: %v", err)
	}
}

func TestAChildThatDiesBeforeItBeginsIsTold(t *testing.T) {
	c := begin(t, "sleep", "60")
	defer c.abandon()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Its first thread is a zombie before the last one has closed its files.
	for err := error(unix.EINTR); errors.Is(err, unix.EINTR); {
		if err = unix.Waitid(unix.P_PID, c.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	if err := c.release(); err == nil {
		t.Error("released a dead child")
	}
}

func TestNothingOutlivesAParentThatIsKilled(t *testing.T) {
	for _, when := range []string{"waiting", "released"} {
		t.Run(when, func(t *testing.T) {
			parent := exec.Command("/proc/self/exe")
			parent.Env = append(os.Environ(), "RUN_TEST_PARENT="+when)
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			defer parent.Wait()
			var pid int
			if _, err := fmt.Fscan(out, &pid); err != nil {
				_ = parent.Process.Kill()
				t.Fatal(err)
			}
			handle, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(handle)
			if err := parent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			poll := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
			n, err := 0, error(unix.EINTR)
			for deadline := time.Now().Add(time.Minute); errors.Is(err, unix.EINTR) && time.Now().Before(deadline); {
				n, err = unix.Poll(poll, 60_000)
			}
			if n != 1 || err != nil {
				_ = unix.Kill(pid, unix.SIGKILL)
				t.Errorf("process %d lives on (%v)", pid, err)
			}
		})
	}
}

func TestServicesAreFoundInTheEnvironment(t *testing.T) {
	out := []*nodev1.Outbound{{Service: "feature-store.retail", Port: 8080}, {Service: "db", Port: 5432, Listen: "127.0.0.1:9001"}}
	if err := allocate(nil, out); err != nil {
		t.Fatal(err)
	}
	got := addresses(out)
	if len(got) != 2 || !strings.HasPrefix(got[0], "LEGATION_OUTBOUND_FEATURE_STORE_RETAIL=127.0.0.1:") || got[1] != "LEGATION_OUTBOUND_DB=127.0.0.1:9001" {
		t.Errorf("%q", got)
	}
	if err := allocate([]*nodev1.Inbound{{Listen: "127.0.0.1:1", App: "8080"}}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("an address without a host: %v", err)
	}
}
