package drain_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legation-io/legation/sdk/drain"
)

func quiet(signals <-chan os.Signal) drain.Config {
	return drain.Config{Signals: signals, Logger: slog.New(slog.DiscardHandler), Notice: time.Second, Deadline: 5 * time.Second}
}

func untilDone(ctx context.Context) error { <-ctx.Done(); return nil }

func TestTheEndOfOnePartEndsAll(t *testing.T) {
	broken := errors.New("the disk is gone")
	for _, row := range []struct {
		name string
		err  error
	}{{"with an error", broken}, {"without", nil}} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var drained, ended atomic.Bool
				stop := make(chan struct{})
				err := drain.Run(t.Context(), quiet(make(chan os.Signal)),
					drain.Part{Name: "first", Run: func(context.Context) error { return row.err }},
					drain.Part{Name: "server", Run: func(context.Context) error { <-stop; return nil }, Drain: func(context.Context) error { drained.Store(true); close(stop); return nil }},
					drain.Background("store", func(ctx context.Context) error { <-ctx.Done(); ended.Store(drained.Load()); return nil }),
				)
				if !errors.Is(err, row.err) || !drained.Load() || !ended.Load() {
					t.Errorf("%v, drained %v, the background ended after that %v", err, drained.Load(), ended.Load())
				}
				if err != nil && !strings.Contains(err.Error(), "first: the disk is gone") {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

func TestTheEndOfTheContextDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		if err := drain.Run(ctx, quiet(make(chan os.Signal)), drain.Background("b", untilDone)); err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %s: nobody was to be told", err, time.Since(begin))
		}
	})
}

func TestWhatDoesNotEndIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		signals <- syscall.SIGTERM
		release := make(chan struct{})
		defer close(release)
		begin := time.Now()
		err := drain.Run(t.Context(), quiet(signals),
			drain.Part{Name: "stuck", Run: func(context.Context) error { <-release; return nil }, Drain: func(ctx context.Context) error { <-release; return nil }})
		if _, ok := errors.AsType[*drain.TimeoutError](err); !ok || time.Since(begin) > 20*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}

func TestReloadsAreOneAtATimeAndNeverHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		var now, most, calls atomic.Int32
		c := quiet(signals)
		c.Reload = []func() error{func() error {
			most.Store(max(most.Load(), now.Add(1)))
			calls.Add(1)
			time.Sleep(2 * time.Second)
			now.Add(-1)
			return nil
		}}
		go func() {
			for range 10 {
				signals <- syscall.SIGHUP
			}
			time.Sleep(time.Second)
			signals <- syscall.SIGTERM
		}()
		begin := time.Now()
		if err := drain.Run(t.Context(), c, drain.Background("b", untilDone)); err != nil {
			t.Error(err)
		}
		if most.Load() != 1 || calls.Load() > 2 || time.Since(begin) > 5*time.Second {
			t.Errorf("%d at once, %d calls, %s", most.Load(), calls.Load(), time.Since(begin))
		}
	})
}

func TestAReloadThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		release := make(chan struct{})
		defer close(release)
		c := quiet(signals)
		began := make(chan struct{})
		c.Reload = []func() error{func() error { close(began); <-release; return nil }}
		go func() {
			signals <- syscall.SIGHUP
			<-began
			signals <- syscall.SIGTERM
			signals <- syscall.SIGTERM
		}()
		if err := drain.Run(t.Context(), c, drain.Background("b", untilDone)); !errors.Is(err, drain.ErrCut) {
			t.Errorf("%v", err)
		}
	})
}

func TestAServerThatCannotServeSaysSo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	err = drain.Run(t.Context(), quiet(make(chan os.Signal)), drain.HTTP(&http.Server{}, l))
	if err == nil || !strings.Contains(err.Error(), "HTTP server on "+l.Addr().String()) {
		t.Errorf("%v", err)
	}
}
