package workload

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/legation-io/legation/internal/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Want says which costly selectors some entry asks for.
type Want struct {
	// SHA256: unix:sha256, which reads the whole executable once.
	SHA256 bool
	// Names: unix:user, unix:group and unix:supplementary_group, looked up
	// in the user database.
	Names bool
}

// Params is what an Attestor needs; the zero value works.
type Params struct {
	// Want is asked at each attestation; nil wants everything.
	Want       func() Want
	Log        *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil registers nothing
}

// Attestor makes Callers and watches them all with one goroutine.
type Attestor struct {
	want   func() Want
	log    *slog.Logger
	hashes hashCache
	names  nameCache

	attested *prometheus.CounterVec
	talk     *telemetry.Sampler // any local process can make refusals

	mu      sync.Mutex // guards what follows
	epoll   int        // -1 while Run does not run
	watched map[int]*Caller
}

// NewAttestor starts nothing; Run does the watching.
func NewAttestor(p Params) *Attestor {
	a := &Attestor{want: p.Want, log: p.Log, epoll: -1, watched: map[int]*Caller{}, talk: telemetry.NewSampler(5, time.Minute), hashes: newHashCache()}
	if a.want == nil {
		a.want = func() Want { return Want{SHA256: true, Names: true} }
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.attested = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "legation_workload_attestations_total",
		Help: "Attestations of local callers by outcome: attested, refused.",
	}, []string{"outcome"})
	if p.Registerer != nil {
		p.Registerer.MustRegister(a.attested)
	}
	return a
}

// refused counts and logs a caller that could not be attested.
func (a *Attestor) refused(err error) {
	a.attested.WithLabelValues("refused").Inc()
	if ok, left := a.talk.Allow(""); ok {
		a.log.Warn("a local caller was refused", "error", err, "left_out", left)
	} else {
		a.log.Debug("a local caller was refused", "error", err)
	}
}

// Run closes Done of each caller whose process ends, until ctx ends.
func (a *Attestor) Run(ctx context.Context) error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch callers: %w", err)
	}
	// The runtime's poller waits for this epoll, so that no thread is held.
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return fmt.Errorf("watch callers: %w", err)
	}
	file := os.NewFile(uintptr(epoll), "epoll of callers")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return fmt.Errorf("watch callers: %w", err)
	}

	a.mu.Lock()
	a.epoll = epoll
	for fd, c := range a.watched {
		a.addLocked(fd, c)
	}
	a.mu.Unlock()

	finished, closed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(closed)
		select {
		case <-ctx.Done():
		case <-finished:
		}
		a.mu.Lock()
		a.epoll = -1
		a.mu.Unlock()
		file.Close()
	}()

	events := make([]unix.EpollEvent, 64)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.EpollWait(int(fd), events, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return true
			}
			for _, e := range events[:n] {
				a.ended(int(e.Fd))
			}
			if n == 0 {
				return false // wait for the next
			}
		}
	})
	close(finished)
	<-closed
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch callers: %w", err)
}

// watch has c.ended called when the process behind its pidfd ends.
func (a *Attestor) watch(fd int, c *Caller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watched[fd] = c
	a.addLocked(fd, c)
}

func (a *Attestor) addLocked(fd int, c *Caller) {
	if a.epoll < 0 {
		return
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
	if err := unix.EpollCtl(a.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		a.log.Error("a caller cannot be watched; its streams are ended", "pid", c.pid, "error", err)
		c.end()
	}
}

// unwatch must come before the fd is closed.
func (a *Attestor) unwatch(fd int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.watched[fd]; !ok {
		return
	}
	delete(a.watched, fd)
	if a.epoll >= 0 {
		_ = unix.EpollCtl(a.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	}
}

func (a *Attestor) ended(fd int) {
	a.mu.Lock()
	c := a.watched[fd]
	a.mu.Unlock()
	// The number may be another caller's by now: ask the process itself.
	if c != nil && !c.Alive() {
		c.end()
	} else if c != nil {
		a.mu.Lock()
		if a.watched[fd] == c && a.epoll >= 0 {
			event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
			_ = unix.EpollCtl(a.epoll, unix.EPOLL_CTL_MOD, fd, &event)
		}
		a.mu.Unlock()
	}
}
