// Package drain answers "how does a service stop without losing a request, and
// reload without stopping": it runs servers, and heeds the signals that init
// systems and Kubernetes send.
//
//	files, err := certfile.New(certfile.Config{Certificate: "tls.crt", Key: "tls.key"})
//	...
//	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{GetCertificate: files.GetCertificate}}
//	listener, err := net.Listen("tcp", ":8443")
//	...
//	err = drain.Run(ctx, drain.Config{Reload: []func() error{files.Reload}},
//		drain.HTTP(server, listener),
//		drain.Background("certificate files", files.Run))
//
// SIGHUP calls the Reload functions. SIGTERM and SIGINT drain:
//
//  1. Notice: the servers still accept, and ask their clients to go elsewhere
//     with each answer (Connection: close; GOAWAY in HTTP/2 and gRPC).
//  2. The listeners are closed once the kernel's queue of connections is empty.
//  3. Requests under way are answered; idle connections are closed.
//  4. What is in the background ends last, since requests need it.
//
// A second SIGTERM or SIGINT, or the Deadline, cuts that short.
//
// What cannot be kept: a request on an HTTP/1.1 connection that was idle for the
// whole notice, sent in the instant in which the server closes it (RFC 9112
// 9.3.1: clients must expect that, and repeat what is safe to); and connections
// that were taken from net/http (websockets), which end with the process.
package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Config is how a program reloads and ends. The zero value works.
type Config struct {
	// Reload functions are called by SIGHUP, one after the other, e.g.
	// certfile.Source.Reload. Their errors are logged: what was there before must
	// go on.
	Reload []func() error
	// Draining is called when draining begins, e.g. to make the readiness probe
	// fail; may be nil.
	Draining func()
	// Notice is how long clients are asked to go elsewhere before the listeners
	// are closed; zero is 1 s, negative none. Kubernetes takes some seconds to
	// tell everybody that a pod ends.
	Notice time.Duration
	// Deadline is how long requests under way may take after the notice; zero
	// is 20 s. What is in the background gets as long, notice included, once
	// they are answered. Kubernetes kills 30 s after SIGTERM
	// (terminationGracePeriodSeconds).
	Deadline time.Duration
	// Logger; nil is slog.Default().
	Logger *slog.Logger
	// Signals replaces those of the process; for tests.
	Signals <-chan os.Signal
}

// A Part is something that runs. HTTP, GRPC and Background make one of what
// there usually is; another fills in the fields.
type Part struct {
	// Name for logs and errors.
	Name string
	// Run does its work until it is drained or closed, or, without Drain, until
	// ctx ends. What it returns before that ends the whole program; nil then is
	// an end like SIGTERM.
	Run func(ctx context.Context) error
	// Announce asks clients to go elsewhere, and does not wait; may be nil.
	Announce func()
	// Drain lets nobody new in, waits until what is under way is done, and
	// makes Run return. The error is ctx's when that took too long. Nil: the
	// part is in the background, and ends last.
	Drain func(ctx context.Context) error
	// Close ends it at once; may be nil.
	Close func() error
}

// Background is work that requests need and that ends after them: run returns
// when its context does.
func Background(name string, run func(context.Context) error) Part {
	return Part{Name: name, Run: run}
}

// ErrCut is why Run gave up draining: a second signal.
var ErrCut = errors.New("a second signal cut draining short")

// TimeoutError is why Run gave up draining: the deadline.
type TimeoutError struct {
	Deadline time.Duration
}

// Error implements error.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("draining took longer than %s (Config.Deadline)", e.Deadline)
}

// Run runs all parts until a signal, the end of ctx, or the end of one of them,
// drains them, and returns when all have ended. Nil: all went well, and nothing
// was cut short. Otherwise it names the parts that failed, were cut short by
// the Deadline (*TimeoutError) or by a second signal (ErrCut).
func Run(ctx context.Context, c Config, parts ...Part) error {
	if c.Notice == 0 {
		c.Notice = time.Second
	}
	if c.Deadline <= 0 {
		c.Deadline = 20 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Signals == nil {
		// Before anything starts: SIGHUP's default is to kill.
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
		defer signal.Stop(signals)
		c.Signals = signals
	}
	r := &run{config: c, parts: parts, ended: make(chan result, len(parts)), reload: make(chan struct{}, 1)}
	return r.all(ctx)
}

type run struct {
	config Config
	parts  []Part
	ended  chan result
	reload chan struct{}

	running   int            // touched by one step at a time
	reloading sync.WaitGroup // waited for by rest

	mu   sync.Mutex // guards errs: a step that is left behind may go on
	errs []error
}

func (r *run) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func (r *run) verdict() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.errs...)
}

type result struct {
	part int
	err  error
}

func (r *run) all(ctx context.Context) error {
	// Parts do not end with ctx, but when they were drained.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.reloading.Go(func() { r.reloads(base) })
	for n, p := range r.parts {
		r.running++
		go func() { r.ended <- result{n, p.Run(base)} }()
	}
	why := r.wait(ctx)
	r.config.Logger.Info("draining", "because", why, "notice", max(r.config.Notice, 0), "deadline", r.config.Deadline)
	cut := r.cutShort(base, r.drain)
	if cut != nil {
		r.failed(cut)
		r.config.Logger.Warn("draining was cut short", "error", cut)
	}
	// Last what the others needed.
	cancel()
	if cut = r.cutShort(context.WithoutCancel(ctx), r.rest); cut != nil {
		r.failed(cut)
	}
	if err := r.verdict(); err != nil {
		return err
	}
	r.config.Logger.Info("drained")
	return nil
}

// reloads runs until the parts end; signals that come meanwhile are one.
func (r *run) reloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.reload:
		}
		ok := true
		for _, f := range r.config.Reload {
			if err := f(); err != nil {
				ok = false
				r.config.Logger.Error("reload failed, what was there before goes on", "error", err)
			}
		}
		if ok {
			r.config.Logger.Info("reloaded")
		}
	}
}

// wait returns why it is time to end.
func (r *run) wait(ctx context.Context) string {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx).Error()
		case e := <-r.ended:
			r.note(e)
			return r.parts[e.part].Name + " ended"
		case s := <-r.config.Signals:
			if s != syscall.SIGHUP {
				return s.String()
			}
			r.hup()
		}
	}
}

func (r *run) hup() {
	select {
	case r.reload <- struct{}{}:
	default: // the one that is due reads what is there then
	}
}

func (r *run) note(e result) {
	r.running--
	if e.err != nil {
		r.failed(fmt.Errorf("%s: %w", r.parts[e.part].Name, e.err))
	}
}

// cutShort does one step; a signal to end, or the deadline, closes everything.
func (r *run) cutShort(ctx context.Context, step func(context.Context)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() { step(ctx); close(done) }()
	limit := max(r.config.Notice, 0) + r.config.Deadline
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	var why error
	for why == nil {
		select {
		case <-done:
			cancel(nil)
			return nil
		case s := <-r.config.Signals:
			if s == syscall.SIGHUP {
				r.hup()
				continue
			}
			why = ErrCut
		case <-deadline.C:
			why = &TimeoutError{Deadline: r.config.Deadline}
		}
	}
	cancel(why)
	for _, p := range r.parts {
		if p.Close != nil {
			_ = p.Close() // it is too late to mind
		}
	}
	select {
	case <-done:
	case <-time.After(unheeded):
		// A part that neither its context nor Close ends is left behind: the
		// program is about to exit, and must.
	}
	return why
}

// unheeded is how long parts may take to notice that they were closed.
const unheeded = time.Second

// drain ends the servers.
func (r *run) drain(ctx context.Context) {
	if r.config.Draining != nil {
		r.config.Draining()
	}
	clients := false
	for _, p := range r.parts {
		clients = clients || p.Drain != nil
		if p.Announce != nil {
			p.Announce()
		}
	}
	if r.config.Notice > 0 && clients {
		notice := time.NewTimer(r.config.Notice)
		defer notice.Stop()
		select {
		case <-notice.C:
		case <-ctx.Done():
		}
	}
	var wg sync.WaitGroup
	for _, p := range r.parts {
		if p.Drain != nil {
			wg.Go(func() {
				if err := p.Drain(ctx); err != nil {
					r.failed(fmt.Errorf("drain %s: %w", p.Name, err))
				}
			})
		}
	}
	wg.Wait()
}

// rest waits for all that still runs, a Reload among it.
func (r *run) rest(ctx context.Context) {
	for r.running > 0 {
		select {
		case e := <-r.ended:
			r.note(e)
		case <-ctx.Done():
			return
		}
	}
	r.reloading.Wait() // cutShort leaves behind what does not end
}
