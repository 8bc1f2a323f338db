package envoy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legation-io/legation/internal/fault"
)

// User is what an Envoy runs as when it is not its parent's user.
type User struct {
	UID, GID uint32
	// Groups are supplementary; none by default.
	Groups []uint32
}

// ProcessParams says how to run one Envoy.
type ProcessParams struct {
	// Binary is the path of Envoy; see Find and Version.
	Binary string
	// Bootstrap is Envoy's configuration, JSON; see Bootstrap.
	Bootstrap []byte
	// AdminSocket as in the bootstrap. Its directory must be writable by
	// the Envoy's user and by nobody else.
	AdminSocket string
	// Concurrency is the number of worker threads; 0 takes 2, fewer where
	// fewer processors are.
	Concurrency int
	// User runs Envoy as another user; needs root. nil keeps the parent's.
	User *User
	// Mark gives Envoy the one capability with which it may set SO_MARK on
	// its connections (CAP_NET_RAW, or CAP_NET_ADMIN before Linux 5.17), so
	// that capture can tell them from the program's. Needs root.
	Mark bool
	// NetNS is the path of the network namespace to run it in; empty keeps
	// the parent's. Needs root.
	NetNS string
	// Cgroup names a control group of Envoy's own below the parent's; empty
	// leaves it in the parent's. One that cannot be made is logged once.
	Cgroup string
	// Grace is how long Stop waits after SIGTERM; 0 takes 5 s.
	Grace time.Duration
	// OnStart is called with the pid after each start, before Envoy is LIVE.
	OnStart func(pid int)
	// OnExit is called after each end that was not asked for.
	OnExit func(err error, again time.Duration)
	Logger *slog.Logger
}

// Process is one Envoy, restarted when it dies.
type Process struct {
	*Admin
	p   ProcessParams
	pid atomic.Int64 // 0 while none runs
	own *cgroup      // set by Run; nil without
}

// Backoff between restarts: doubled from the first to the last, and back to
// the first after an Envoy lived for steady.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
	steady       = 30 * time.Second
)

// NewProcess checks the parameters and starts nothing.
func NewProcess(p ProcessParams) (*Process, error) {
	if p.Binary == "" || len(p.Bootstrap) == 0 || p.AdminSocket == "" {
		return nil, fault.New(fault.Invalid, "an Envoy needs a binary, a bootstrap and an admin socket")
	}
	if (p.User != nil || p.Mark) && os.Geteuid() != 0 {
		return nil, fault.New(fault.Denied, "only root can run Envoy as another user or let it mark its connections")
	}
	if p.Concurrency <= 0 {
		p.Concurrency = min(2, runtime.NumCPU())
	}
	if p.Grace <= 0 {
		p.Grace = 5 * time.Second
	}
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	return &Process{Admin: NewAdmin(p.AdminSocket), p: p}, nil
}

// PID of the Envoy that runs now, or 0.
func (p *Process) PID() int { return int(p.pid.Load()) }

// Run keeps an Envoy running until ctx ends, then stops it (SIGTERM, after
// Grace SIGKILL) and returns nil. An Envoy that dies is started again, with
// back-off. The error is for what no restart mends: the binary cannot be
// executed, the configuration is refused at the very first start.
func (p *Process) Run(ctx context.Context) error {
	if p.p.Cgroup != "" {
		own, err := newCgroup(p.p.Cgroup)
		if err != nil {
			p.p.Logger.WarnContext(ctx, "Envoy shares the program's control group", "error", err)
		}
		p.own = own
		defer func() {
			if err := own.remove(); err != nil {
				p.p.Logger.WarnContext(ctx, "an empty control group is left", "error", err)
			}
		}()
	}
	done := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the *thread* that forked ends: this one
		// lives as long as its Envoys.
		runtime.LockOSThread()
		if p.p.NetNS == "" {
			defer runtime.UnlockOSThread()
		} else if err := enter(p.p.NetNS); err != nil {
			done <- err
			return // still locked: the thread is thrown away
		}
		done <- p.supervise(ctx)
	}()
	return <-done
}

func (p *Process) supervise(ctx context.Context) error {
	backoff := firstBackoff
	for first := true; ; first = false {
		started := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		lived := time.Since(started)
		if errors.Is(err, errStart) || (first && errors.Is(err, errRefused)) {
			return err
		}
		if lived > steady {
			backoff = firstBackoff
		}
		p.p.Logger.ErrorContext(ctx, "Envoy died; it is started again", "error", err, "lived", lived.Round(time.Millisecond), "in", backoff)
		if p.p.OnExit != nil {
			p.p.OnExit(err, backoff)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// enter moves the calling thread.
func enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s for Envoy: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s for Envoy: %w", path, err)
	}
	return nil
}

var (
	errStart   = errors.New("cannot start Envoy")
	errRefused = errors.New("configuration refused by Envoy")
)

// once runs one Envoy to its end.
func (p *Process) once(ctx context.Context) error {
	// A socket left by a killed Envoy would keep the next from binding.
	if err := os.Remove(p.p.AdminSocket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: remove the old admin socket: %w", errStart, err)
	}
	lines := &logLines{logger: p.p.Logger, ctx: ctx}
	cmd := exec.Command(p.p.Binary,
		// On the command line nothing lies about for another to change; it
		// holds no secret. JSON is YAML.
		"--config-yaml", string(p.p.Bootstrap),
		"--concurrency", strconv.Itoa(p.p.Concurrency),
		"--disable-hot-restart",
		"--log-level", lines.level(), "--log-format", logFormat, "--log-format-escaped",
	)
	if p.p.User != nil {
		// By descriptor: a folder on the way may be closed to that user, as
		// root's home is.
		binary, err := os.Open(p.p.Binary)
		if err != nil {
			return fmt.Errorf("%w: %w", errStart, err)
		}
		defer binary.Close()
		cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{binary}
	}
	cmd.Stdout, cmd.Stderr = lines, lines
	cmd.WaitDelay = 2 * time.Second // for the end of its output
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = p.attributes()
	p.own.born(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errStart, err)
	}
	if err := p.own.take(cmd.Process.Pid); err != nil {
		p.p.Logger.WarnContext(ctx, "Envoy shares the program's control group", "error", err)
	}
	pid := cmd.Process.Pid
	p.pid.Store(int64(pid))
	defer p.pid.Store(0)
	if p.p.OnStart != nil {
		p.p.OnStart(pid)
	}
	started := time.Now()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		if last := lines.lastError(); last != "" {
			err = fmt.Errorf("%w: %s", err, last)
		}
		if cmd.ProcessState.ExitCode() == 1 && time.Since(started) < refusal {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return fmt.Errorf("process %d of Envoy ended: %w", pid, err)
	case <-ctx.Done():
	}
	// Errors of Signal mean that it is gone already; Wait then returns.
	_ = cmd.Process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(p.p.Grace)
	defer grace.Stop()
	select {
	case <-exited:
	case <-grace.C:
		p.p.Logger.WarnContext(ctx, "Envoy does not end on SIGTERM and is killed", "pid", pid, "after", p.p.Grace)
		_ = cmd.Process.Kill()
		<-exited
	}
	return nil
}

// refusal is how soon an Envoy that does not like its bootstrap has ended.
const refusal = 3 * time.Second

func (p *Process) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{
		// Its own process group: a Ctrl-C at the terminal is ours to pass on.
		Setpgid: true,
		// It cannot outlive whoever ends its connections on a revocation.
		Pdeathsig: syscall.SIGKILL,
	}
	if u := p.p.User; u != nil {
		a.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
		if p.p.Mark {
			a.AmbientCaps = []uintptr{MarkCapability()}
		}
	}
	return a
}

// MarkCapability is the least capability that lets a process set SO_MARK on
// this kernel: CAP_NET_RAW since Linux 5.17, CAP_NET_ADMIN before. With
// NET_RAW it cannot change the rules of the capture.
func MarkCapability() uintptr {
	var u unix.Utsname
	if unix.Uname(&u) == nil && kernelAtLeast(unix.ByteSliceToString(u.Release[:]), 5, 17) {
		return unix.CAP_NET_RAW
	}
	return unix.CAP_NET_ADMIN
}

func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
