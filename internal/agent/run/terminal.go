package run

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sys/unix"
)

// foreground reports whether a terminal sends its signals to this process
// group. Then the program stays in it: keys reach it, and everything else of
// its pipeline, as if it had been started without us; Ctrl-Z stops us together.
func foreground() bool {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil {
			return group == unix.Getpgrp()
		}
	}
	return false
}

// signals that are the program's.
func (s *session) listen() (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	if !s.child.shares {
		signal.Notify(c, syscall.SIGTSTP, syscall.SIGCONT)
	}
	return c, func() { signal.Stop(c) }
}

// forward passes a signal on, unless the terminal gave it to the program too.
func (s *session) forward(sig os.Signal) {
	if s.child.shares {
		switch sig {
		case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH:
			return
		}
	}
	_ = s.child.cmd.Process.Signal(sig)
	if sig == syscall.SIGTSTP {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) // whoever started us sees that we stopped
	}
}

// errInterrupted is a signal before the program ran.
type errInterrupted struct{ signal syscall.Signal }

func (e errInterrupted) Error() string {
	return "interrupted (" + e.signal.String() + ") before the program started"
}

// interruptible ends with a signal that ends a program.
func interruptible(ctx context.Context, signals <-chan os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			case sig := <-signals:
				switch sig := sig.(syscall.Signal); sig {
				case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
					cancel(fault.New(fault.Unavailable, "%w", errInterrupted{sig}))
					return
				}
			}
		}
	}()
	return ctx, func() {
		close(stop)
		<-watched
		cancel(nil)
	}
}
