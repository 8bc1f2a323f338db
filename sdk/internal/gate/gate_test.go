package gate

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// acceptor answers each connection with one byte.
func acceptor(t *testing.T, l net.Listener) {
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, syscall.EMFILE) {
				continue
			}
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				return
			}
			c.Write([]byte("x"))
			c.Close()
		}
	})
}

func TestWhoIsInTheQueueIsAccepted(t *testing.T) {
	for _, row := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"unix", filepath.Join(t.TempDir(), "s")}} {
		t.Run(row.network, func(t *testing.T) {
			inner, err := net.Listen(row.network, row.address)
			if err != nil {
				t.Fatal(err)
			}
			l := New(inner)
			l.longest = time.Minute
			var queued []net.Conn
			for range 50 {
				c, err := net.Dial(row.network, l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				queued = append(queued, c)
			}
			acceptor(t, l)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := l.Drain(ctx); err != nil {
				t.Fatal(err)
			}
			for n, c := range queued {
				if got, err := io.ReadAll(c); string(got) != "x" {
					t.Errorf("connection %d was lost: %q %v", n, got, err)
				}
				c.Close()
			}
			if c, err := net.Dial(row.network, l.Addr().String()); err == nil {
				c.Close()
				t.Error("somebody else was let in")
			}
			if err := l.Drain(ctx); err != nil {
				t.Errorf("twice: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// poor is a listener of a machine that lacks something.
type poor struct {
	*net.UnixListener
	turns int
	lack  func() error
}

func (p *poor) Accept() (net.Conn, error) {
	if p.turns++; p.turns%2 == 0 {
		if err := p.lack(); err != nil {
			return nil, err
		}
	}
	return p.UnixListener.Accept()
}

func TestWhoIsInTheQueueOfAPoorMachineIsAcceptedOnLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can")
	}
	for name, lack := range map[string]func() error{
		"no time until the deadline has passed": func() error { time.Sleep(2 * lullOpen); return nil },
		"no descriptors":                        func() error { return &net.OpError{Op: "accept", Err: syscall.EMFILE} },
	} {
		t.Run(name, func(t *testing.T) {
			inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			l := New(&poor{UnixListener: inner.(*net.UnixListener), lack: lack})
			l.longest = time.Minute
			var queued []net.Conn
			for range 10 {
				c, err := net.Dial("unix", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				queued = append(queued, c)
			}
			acceptor(t, l)
			if err := l.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			for n, c := range queued {
				if got, err := io.ReadAll(c); string(got) != "x" {
					t.Errorf("connection %d was lost: %q %v", n, got, err)
				}
			}
		})
	}
}

// lingering is a listener whose Close takes its time.
type lingering struct {
	*net.UnixListener
	closing chan struct{}
	resume  chan struct{}
}

func (s *lingering) Close() error {
	err := s.UnixListener.Close()
	select {
	case s.closing <- struct{}{}:
		<-s.resume
	default:
	}
	return err
}

func TestClosingWhileTheEmptyQueueClosesIsNoError(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &lingering{inner.(*net.UnixListener), make(chan struct{}, 1), make(chan struct{})}
	l := New(s)
	acceptor(t, l)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := l.Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	<-s.closing
	wg.Go(func() { close(s.resume) })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestNewcomersAreRefusedAtOnceOnLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can")
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if !refuseNewcomers(inner) {
		t.Fatal("the kernel does not know how")
	}
	if c, err := net.DialTimeout("tcp", inner.Addr().String(), time.Minute); err == nil {
		c.Close()
		t.Error("a newcomer was let in")
	} else if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		t.Error("a newcomer waits")
	}
}

func TestWithoutAnybodyAcceptingDrainEndsWithItsContext(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(inner)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Drain(t.Context()); err != nil {
		t.Errorf("closed: %v", err)
	}
}
