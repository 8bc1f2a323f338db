package telemetry

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// OnHangup calls f at each SIGHUP until ctx ends. The function it returns
// waits until no call runs any more; call it when ctx has ended.
func OnHangup(ctx context.Context, f func()) (wait func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				f()
			}
		}
	}()
	return func() { <-done }
}
