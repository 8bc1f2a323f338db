package run

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// StubCommand is the hidden subcommand that a waiting child runs until it is
// told to become the program.
const StubCommand = "__exec"

// File descriptors of the waiting child.
const (
	fdExec = 3 // the file to be executed
	fdGo   = 4 // a byte here says go; end of file says give up
	fdFail = 5 // closed by a successful exec; else receives the reason
)

// resolved is a program as the kernel will run it.
type resolved struct {
	path string   // of the file that is executed: for a script, its interpreter
	argv []string // as that file will see them
}

// resolve finds a program as a shell would and follows "#!", so that the file
// that is attested is the file that runs.
func resolve(argv []string) (resolved, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return resolved{}, fault.New(fault.Invalid, "program %q: %w", argv[0], err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return resolved{}, err
	}
	args := append([]string(nil), argv...)
	for range 4 {
		line, script, err := shebang(path)
		if err != nil {
			return resolved{}, err
		}
		if !script {
			real, err := filepath.EvalSymlinks(path)
			if err != nil {
				return resolved{}, fault.New(fault.Invalid, "program %q: %w", path, err)
			}
			return resolved{path: real, argv: args}, nil
		}
		// As the kernel reads it (fs/binfmt_script.c): one argument, after
		// spaces or tabs.
		line = strings.Trim(line, " \t")
		interpreter, arg := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			interpreter, arg = line[:i], line[i+1:]
		}
		if interpreter == "" {
			return resolved{}, fault.New(fault.Invalid, "%s: empty #! line", path)
		}
		next := []string{interpreter}
		if arg = strings.Trim(arg, " \t"); arg != "" {
			next = append(next, arg)
		}
		args = append(append(next, path), args[1:]...)
		// "#!/usr/bin/env NAME": env would exec NAME, unseen by attestation.
		if filepath.Base(interpreter) == "env" && arg != "" && !strings.HasPrefix(arg, "-") && !strings.ContainsAny(arg, " \t=") {
			found, err := exec.LookPath(arg)
			if err != nil {
				return resolved{}, fault.New(fault.Invalid, "%s: interpreter %q: %w", path, arg, err)
			}
			args = append([]string{arg}, args[2:]...)
			interpreter = found
		}
		path = interpreter
	}
	return resolved{}, fault.New(fault.Invalid, "%s: interpreters of interpreters", argv[0])
}

func shebang(path string) (string, bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, fault.New(fault.Invalid, "program %s: %w", path, err)
	}
	defer f.Close()
	head := make([]byte, 256)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", false, fmt.Errorf("read %s: %w", path, err)
	}
	if !bytes.HasPrefix(head[:n], []byte("#!")) {
		return "", false, nil
	}
	line, _ := bufio.NewReader(bytes.NewReader(head[2:n])).ReadString('\n')
	return strings.TrimRight(line, "\n"), true, nil
}

// child is a process that waits to become the program.
type child struct {
	cmd  *exec.Cmd
	gate *os.File // write end: go
	fail *os.File // read end: why exec failed
	path string
	// shares: it is in our process group, and a terminal's signals reach it.
	shares bool
}

// startStopped starts the waiting child: it has its final uid, namespaces and
// cgroup, and executes nothing of the program yet. The caller must keep the
// OS thread (the child dies with it).
func startStopped(r resolved, as *account, env []string) (*child, error) {
	file, err := os.Open(r.path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "program: %w", err)
	}
	defer file.Close()
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer goRead.Close()
	failRead, failWrite, err := os.Pipe()
	if err != nil {
		goWrite.Close()
		return nil, err
	}
	defer failWrite.Close()
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{os.Args[0], StubCommand, r.path}, r.argv...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{file, goRead, failWrite}
	shares := foreground()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !shares, Pdeathsig: syscall.SIGKILL}
	if as != nil {
		cmd.SysProcAttr.Credential = &as.credential
	}
	if err := cmd.Start(); err != nil {
		goWrite.Close()
		failRead.Close()
		return nil, fmt.Errorf("start %s: %w", r.path, err)
	}
	return &child{cmd: cmd, gate: goWrite, fail: failRead, path: r.path, shares: shares}, nil
}

// release lets the child become the program and waits until it has.
func (c *child) release() error {
	_, err := c.gate.Write([]byte{1})
	c.gate.Close()
	if err != nil {
		return fmt.Errorf("the program's process ended before it began: %w", err)
	}
	reason, _ := io.ReadAll(io.LimitReader(c.fail, 4096))
	c.fail.Close()
	if len(reason) > 0 {
		return fault.New(fault.Invalid, "run %s: %s", c.path, reason)
	}
	return nil
}

// abandon ends a child that was never released.
func (c *child) abandon() {
	c.gate.Close()
	c.fail.Close()
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// Stub is the waiting child: it becomes argv on one byte at fdGo. It returns
// only on failure, with the exit code.
func Stub(path string, argv []string) int {
	// The kernel keeps the death signal that the parent set for the thread
	// that it made. Which thread executes the program is up to the runtime,
	// and that one lives on: it has to have the signal too.
	runtime.LockOSThread()
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		fmt.Fprintf(os.NewFile(fdFail, "fail"), "tie it to its parent: %v", err)
		return 126
	}
	goFile := os.NewFile(fdGo, "go")
	buf := make([]byte, 1)
	if n, err := goFile.Read(buf); n != 1 || err != nil {
		return 125 // the parent gave up
	}
	if os.Getppid() != parent {
		return 125 // it died before the signal was set
	}
	goFile.Close()
	unix.CloseOnExec(fdExec)
	unix.CloseOnExec(fdFail)
	var env []string
	env = append(env, os.Environ()...)
	// A Go program raises its limit of open files when it starts. Exec puts it
	// back and execveat does not: a program that cannot deal with descriptors
	// above 1023 must find the limit that it was given. This one fails, on
	// purpose: nothing has an empty name.
	_ = syscall.Exec("", nil, nil)
	// By descriptor: what runs is what was attested, whatever has become of the path.
	err := execveat(fdExec, argv, env)
	fmt.Fprintf(os.NewFile(fdFail, "fail"), "%v", err)
	return 126
}

func execveat(fd int, argv, env []string) error {
	argvp, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	return rawExecveat(fd, argvp, envp)
}
