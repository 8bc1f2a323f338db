package renewal

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// RunUntilSignal is Run for a program that does nothing else: SIGTERM and
// SIGINT drain, SIGHUP reloads the Filter.
func (s *Scheduler) RunUntilSignal(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	reloading := make(chan struct{})
	defer func() { <-reloading }()
	over, end := context.WithCancel(ctx)
	defer end()
	go func() {
		defer close(reloading)
		for {
			select {
			case <-over.Done():
				return
			case <-hangups:
			}
			if err := s.Reload(); err != nil {
				s.log.Error("SIGHUP", "error", err)
			} else {
				s.log.Info("SIGHUP: filter read again")
			}
		}
	}()
	return s.Run(ctx)
}
