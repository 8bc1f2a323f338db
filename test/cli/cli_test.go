// Package cli has stories told with the real binaries: each file in testdata
// is a script of what somebody types, and what must come back.
package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/legation-io/legation/internal/freeport"
)

// patience bounds every wait.
const patience = 30 * time.Second

var bin string // folder of the binaries

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "cli")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		cmd := exec.Command("go", "build", "-o", dir, "./cmd/legation", "./cmd/legation-agent")
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the binaries: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(3 * time.Minute),
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serve,
			"hup":   func(ts *testscript.TestScript, _ bool, args []string) { signalled(ts, args, syscall.SIGHUP) },
			"end":   end,
			"until": until,
			"code":  code,
		},
	})
}

// setup gives each script sockets with short paths and free ports. Flags of
// legation that name them are set by environment, as a person would.
func setup(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "s") // a Unix socket's path may have 108 bytes
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(dir) })
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("BIN", bin)
	env.Setenv("ADMIN", filepath.Join(dir, "admin.sock"))
	env.Setenv("AGENT", filepath.Join(dir, "agent.sock"))
	env.Setenv("OWNER", filepath.Join(dir, "agent-admin.sock"))
	env.Setenv("LEGATION_SERVER", "unix://"+filepath.Join(dir, "admin.sock"))
	env.Setenv("LEGATION_AGENT", "unix://"+filepath.Join(dir, "agent-admin.sock"))
	for _, name := range []string{"LISTEN", "METRICS", "AGENT_METRICS"} {
		addr, err := freeport.Address()
		if err != nil {
			return err
		}
		env.Setenv(name, addr)
	}
	env.Values[running{}] = map[string]*exec.Cmd{}
	return nil
}

// running is the key of a script's own processes.
type running struct{}

func processes(ts *testscript.TestScript) map[string]*exec.Cmd {
	return ts.Value(running{}).(map[string]*exec.Cmd)
}

// serve NAME PROGRAM ARGS... starts a program whose stderr goes to NAME.log.
// It ends with the script.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: serve NAME PROGRAM ARGS...")
	}
	log, err := os.OpenFile(ts.MkAbs(args[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	path, err := exec.LookPath(filepath.Join(bin, args[1]))
	ts.Check(err)
	cmd := exec.Command(path, args[2:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), log, log
	cmd.Env = append(os.Environ(), "LEGATION_SERVER=", "LEGATION_AGENT=")
	ts.Check(cmd.Start())
	processes(ts)[args[0]] = cmd
	ts.Defer(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
}

func signalled(ts *testscript.TestScript, args []string, sig syscall.Signal) *exec.Cmd {
	if len(args) != 1 || processes(ts)[args[0]] == nil {
		ts.Fatalf("name a program that was started with serve")
	}
	cmd := processes(ts)[args[0]]
	ts.Check(cmd.Process.Signal(sig))
	return cmd
}

// end NAME asks a program to end and wants exit code 0.
func end(ts *testscript.TestScript, _ bool, args []string) {
	cmd := signalled(ts, args, syscall.SIGTERM)
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
}

// until PROGRAM ARGS... runs a program until it succeeds.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: until PROGRAM ARGS...")
	}
	deadline := time.Now().Add(patience)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v: still %v after %s", args, err, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// code N PROGRAM ARGS... wants exactly that exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%v: exit code %d, want %d", args[1:], got, want)
	}
}
