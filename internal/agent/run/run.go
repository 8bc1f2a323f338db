// Package run is "legation-agent run": it starts a program under attestation
// in a session of its own, with its own Envoy in the path, and is the parent
// of both. It holds no key and decides nothing about identity; the agent does.
package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/capture"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/fault"
	"golang.org/x/sync/errgroup"
)

// Options say how a program is run.
type Options struct {
	// Socket is the agent's public socket.
	Socket string
	// SPIFFEID picks an identity where several entries match; else empty.
	SPIFFEID string
	Mode     nodev1.Mode
	Inbound  []*nodev1.Inbound
	Outbound []*nodev1.Outbound
	// Envoy is the binary; empty searches LEGATION_ENVOY and PATH.
	Envoy string
	// Concurrency is the number of Envoy's worker threads; 0 is 2.
	Concurrency int
	// EnvoyUID is the uid Envoy runs as when this is root; 0 is DefaultEnvoyUID.
	EnvoyUID uint32
	// User is whom the program runs as when this is root: NAME or UID[:GID];
	// empty is root itself.
	User string
	// AllowUDP are destination ports a captured program may send UDP to,
	// besides DNS.
	AllowUDP []uint16
	// ReadyTimeout bounds how long the program waits for its identity.
	ReadyTimeout time.Duration
	// DrainTime is given to open connections when the program has ended.
	DrainTime time.Duration
	Log       *slog.Logger
}

// DefaultEnvoyUID is what sidecars have run as since Istio chose it. Nothing
// is exempt from capture for having this uid.
const DefaultEnvoyUID = 1337

// session is one run, from the stopped child to its exit code.
type session struct {
	Options
	stream   localv1.Sessions_OpenClient // replaced by converse alone
	leave    func()                      // closes what stream is on
	attested *localv1.Attested
	child    *child
	proxy    *envoy.Process
	requests chan *localv1.SessionRequest // written to the stream by one goroutine
	ready    chan struct{}
	running  atomic.Bool            // the program was started
	warning  atomic.Pointer[string] // the agent's last
	begun    time.Time
	accepted map[string][]envoy.Pair // by revocation; used by read alone
}

// Run runs argv and returns its exit code. An error means that the program
// was not started, or that its session was lost.
func Run(ctx context.Context, o Options, argv []string) (int, error) {
	if len(argv) == 0 {
		return 2, fault.New(fault.Invalid, "name a program: legation-agent run [flags] -- PROGRAM ARGS")
	}
	program, err := resolve(argv)
	if err != nil {
		return notRun(err), err
	}
	as, err := o.account()
	if err != nil {
		return 1, err
	}
	if err := allocate(o.Inbound, o.Outbound); err != nil {
		return 1, err
	}
	binary, err := envoy.Find(o.Envoy)
	if err != nil {
		return 1, err
	}
	if _, err := envoy.Version(ctx, binary); err != nil {
		return 1, err
	}
	o.Envoy = binary
	c, err := startStopped(program, as, as.environment(append(os.Environ(), addresses(o.Outbound)...)))
	if err != nil {
		return 1, err
	}
	s := &session{Options: o, child: c, requests: make(chan *localv1.SessionRequest, 256), ready: make(chan struct{}), begun: time.Now(), accepted: map[string][]envoy.Pair{}}
	code, err := s.run(ctx)
	return code, err
}

func (s *session) run(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		if !s.running.Load() {
			s.child.abandon()
		}
	}()
	signals, unlisten := s.listen()
	defer unlisten()
	interrupt, stopInterrupt := interruptible(ctx, signals)
	stopInterrupt = sync.OnceFunc(stopInterrupt)
	defer stopInterrupt()
	var err error
	startCtx, stopStart := context.WithTimeoutCause(interrupt, s.ReadyTimeout, errLate)
	defer stopStart()
	if err := s.open(ctx, startCtx); err != nil {
		return notStarted(err), err
	}
	s.Log.Info("attested", "spiffe_id", s.attested.SpiffeId, "entry", s.attested.Entry, "session", s.attested.Session)

	if s.listensNowhere() {
		s.Log.Info("the proxy listens nowhere: nothing was asked for; --inbound, --outbound and --capture put it in the program's path")
	}

	var rules *capture.Rules
	if s.Mode == nodev1.Mode_MODE_CAPTURE {
		if rules, err = capture.Install(capture.Params{AllowUDPPorts: append([]uint16{53}, s.AllowUDP...), MarkedListeners: true}); err != nil {
			return 1, err
		}
		// The rules outlive the proxy, and on a crash of this process also
		// it: what is captured stays refused. Only a clean end removes them.
		defer func() {
			if err := rules.Remove(); err != nil {
				s.Log.Error("capture rules stay in place", "error", err)
			}
		}()
	}

	group, gctx := errgroup.WithContext(ctx)
	defer func() {
		cancel()
		_ = group.Wait()
	}()
	if s.proxy, err = envoy.NewProcess(s.envoyParams()); err != nil {
		return 1, err
	}
	group.Go(func() error { return ignoreCancel(s.proxy.Run(gctx)) })
	group.Go(func() error { return ignoreCancel(s.converse(gctx)) })
	if rules != nil {
		group.Go(func() error { return s.countCaptured(gctx, rules) })
	}

	if err := s.waitReady(startCtx, gctx); err != nil {
		err = cause(err, group, cancel)
		return notStarted(err), err
	}
	stopStart()
	stopInterrupt()
	if err := s.child.release(); err != nil {
		return 126, err
	}
	s.running.Store(true)
	s.send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Program{Program: &localv1.ProgramStarted{}}})
	s.Log.Info("program started", "pid", s.child.cmd.Process.Pid, "path", s.child.path, "took", time.Since(s.begun).Round(time.Millisecond))
	return s.wait(ctx, gctx, signals)
}

// cause prefers the reason a part of the session ended over the wait it ended.
func cause(err error, group *errgroup.Group, cancel func()) error {
	cancel()
	if why := group.Wait(); why != nil {
		return why
	}
	return err
}

func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) || fault.Is(err, fault.Unavailable) && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (o *Options) envoyUID() uint32 {
	if os.Geteuid() != 0 {
		return uint32(os.Geteuid())
	}
	if o.EnvoyUID == 0 {
		return DefaultEnvoyUID
	}
	return o.EnvoyUID
}

func (s *session) envoyParams() envoy.ProcessParams {
	p := envoy.ProcessParams{
		Binary: s.Envoy, Bootstrap: s.attested.Bootstrap, AdminSocket: s.attested.EnvoyAdmin, Concurrency: s.Concurrency, Logger: s.Log.With("part", "envoy"),
		OnStart: func(pid int) {
			s.send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Envoy{Envoy: &localv1.EnvoyStarted{Pid: int32(pid)}}})
		},
	}
	if os.Geteuid() == 0 {
		p.User = &envoy.User{UID: s.envoyUID(), GID: s.envoyUID()}
		p.Mark = s.Mode == nodev1.Mode_MODE_CAPTURE
		p.Cgroup = envoy.CgroupName(s.attested.Session)
	}
	return p
}

// countEvery is how often the agent is told what met the capture's rules.
const countEvery = 10 * time.Second

// countCaptured tells the agent what met the rules, and whether they are
// still there.
func (s *session) countCaptured(ctx context.Context, rules *capture.Rules) error {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		m := &localv1.CaptureCounters{Packets: map[string]uint64{}}
		counters, err := rules.Counters()
		if err != nil {
			m.Error = err.Error()
		}
		for name, c := range counters {
			m.Packets[name] = c.Packets
		}
		s.send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Captured{Captured: m}})
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// send queues a message; the queue is bounded by what the session does, and a
// full one means the stream is gone.
func (s *session) send(r *localv1.SessionRequest) {
	select {
	case s.requests <- r:
	default:
		s.Log.Warn("the agent does not take messages; one was dropped")
	}
}

func pairs(list []*localv1.SocketPair) []envoy.Pair {
	out := make([]envoy.Pair, 0, len(list))
	for _, p := range list {
		if pair, err := envoy.ParsePair(p.Local, p.Remote); err == nil {
			out = append(out, pair)
		}
	}
	return out
}

// closeSockets ends connections of our Envoy: as its parent this process may.
func (s *session) closeSockets(ctx context.Context, m *localv1.CloseSockets) {
	pid := int(m.EnvoyPid)
	if pid != s.proxy.PID() { // its connections ended with it, and the pid may be another's
		delete(s.accepted, m.Id)
		s.send(closedMessage(&localv1.SocketsClosed{Id: m.Id, Unnamed: m.Unnamed}))
		return
	}
	targets := pairs(m.Sockets)
	if m.Unnamed {
		targets = append(targets, envoy.Unnamed(s.accepted[m.Id], pairs(m.Keep))...)
		delete(s.accepted, m.Id)
	}
	closed, failures := envoy.CloseConnections(ctx, pid, targets)
	if len(m.InboundPorts) > 0 {
		ports := make([]uint16, len(m.InboundPorts))
		for i, p := range m.InboundPorts {
			ports[i] = uint16(p)
		}
		accepted, err := envoy.Accepted(pid, ports)
		if err != nil {
			failures = append(failures, err.Error())
		}
		s.accepted[m.Id] = accepted
	}
	s.send(closedMessage(&localv1.SocketsClosed{Id: m.Id, Closed: uint32(closed), Failures: failures, Unnamed: m.Unnamed}))
}

func closedMessage(m *localv1.SocketsClosed) *localv1.SessionRequest {
	return &localv1.SessionRequest{Message: &localv1.SessionRequest_Closed{Closed: m}}
}

// waitReady waits until Envoy holds its secrets and serves its listeners.
func (s *session) waitReady(startCtx, gctx context.Context) error {
	select {
	case <-s.ready:
	case <-startCtx.Done():
		return s.notReady(startCtx, "the agent does not report that Envoy has taken its configuration and its certificate")
	case <-gctx.Done():
		return gctx.Err()
	}
	return s.serving(startCtx)
}

// errLate is the end of Options.ReadyTimeout.
var errLate = errors.New("late")

// notReady is why a program with an identity was not started: it was
// interrupted, or it is late, and what is missing says for want of what.
func (s *session) notReady(startCtx context.Context, missing string) error {
	if err := context.Cause(startCtx); !errors.Is(err, errLate) {
		return err
	}
	if s.proxy.PID() == 0 {
		missing = "Envoy does not run"
	}
	if said := s.warning.Load(); said != nil {
		missing += "\nthe agent said: " + *said
	}
	return fault.New(fault.Unavailable, "the program is %s, and its proxy was not ready within %s: %s\nsee: what Envoy logged above, and the agent's log of session %s",
		s.attested.SpiffeId, s.ReadyTimeout, missing, s.attested.Session)
}

// listensNowhere: nothing was asked for that a listener would be for.
func (s *session) listensNowhere() bool {
	return s.Mode == nodev1.Mode_MODE_EXPLICIT && len(s.Inbound)+len(s.Outbound) == 0
}

// serving waits until Envoy's workers accept: an acknowledged listener may
// still be warming for some milliseconds.
func (s *session) serving(ctx context.Context) error {
	if err := s.proxy.WaitLive(ctx); err != nil {
		return s.notReady(ctx, err.Error())
	}
	for {
		stats, err := s.proxy.Stats(ctx, `^listener_manager\.(total_listeners_(active|warming)|workers_started|listener_create_failure)$`)
		if err == nil && stats["listener_manager.listener_create_failure"] > 0 {
			return s.deaf(ctx)
		}
		if err == nil && (stats["listener_manager.total_listeners_active"] > 0 || s.listensNowhere()) && stats["listener_manager.total_listeners_warming"] == 0 && stats["listener_manager.workers_started"] == 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return s.notReady(ctx, "Envoy does not listen yet")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// deaf says where Envoy does not listen although it took its configuration:
// Linux lets two bind one address as long as neither listens there.
func (s *session) deaf(ctx context.Context) error {
	names, err := s.proxy.Listeners(ctx)
	if err != nil {
		return err
	}
	var missing []string
	look := func(direction, at string) {
		if !slices.Contains(names, direction+"|"+at) {
			missing = append(missing, at)
		}
	}
	if s.Mode == nodev1.Mode_MODE_EXPLICIT {
		for _, in := range s.Inbound {
			look("inbound", in.Listen)
		}
		for _, out := range s.Outbound {
			look("outbound", out.Listen)
		}
	}
	if len(missing) == 0 {
		return fault.New(fault.Unavailable, "Envoy does not listen where it has to; what it logged above says why")
	}
	return fault.New(fault.Conflict, "%s was taken by another program just now; give another port, or see which: ss -ltnp", strings.Join(missing, ", "))
}

// wait forwards signals until the program ends, then drains.
func (s *session) wait(ctx, gctx context.Context, signals <-chan os.Signal) (int, error) {
	ended := make(chan error, 1)
	go func() { ended <- s.child.cmd.Wait() }() // ends with the program
	var lost error
	done := gctx.Done()
	for {
		select {
		case sig := <-signals:
			s.forward(sig)
		case <-ctx.Done():
			_ = s.child.cmd.Process.Signal(syscall.SIGTERM)
			ctx = context.WithoutCancel(ctx)
		case <-done:
			// Without its session the program has no identity; what is in
			// its path is going away. It is told to end.
			lost, done = fault.New(fault.Unavailable, "the session was lost; the program was told to end"), nil
			_ = s.child.cmd.Process.Signal(syscall.SIGTERM)
		case err := <-ended:
			drain, stop := context.WithTimeout(context.WithoutCancel(ctx), s.DrainTime)
			if err := s.proxy.Drain(drain); err != nil && drain.Err() == nil {
				s.Log.Warn("the proxy did not drain", "error", err)
			}
			stop()
			return exitCode(err), lost
		}
	}
}

// notRun is the exit code of a shell for a program that cannot be run.
func notRun(err error) int {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EISDIR) {
		return 126
	}
	return 127
}

// notStarted is the exit code when the session did not get as far.
func notStarted(err error) int {
	var interrupted errInterrupted
	if errors.As(err, &interrupted) {
		return 128 + int(interrupted.signal)
	}
	return 1
}

// exitCode is what a shell would report.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return 128 + int(st.Signal())
		}
		return exit.ExitCode()
	}
	return 1
}

// allocate fills in what was left open: local ports for destinations.
func allocate(in []*nodev1.Inbound, out []*nodev1.Outbound) error {
	for _, o := range out {
		if o.Listen != "" {
			continue
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("find a free port for %s: %w", o.Service, err)
		}
		o.Listen = l.Addr().String()
		l.Close()
	}
	for _, i := range in {
		if _, _, err := net.SplitHostPort(i.App); err != nil {
			return fault.New(fault.Invalid, "--inbound: %q is not HOST:PORT", i.App)
		}
	}
	return nil
}

// addresses tells the program where its destinations are:
// LEGATION_OUTBOUND_<SERVICE>=127.0.0.1:PORT.
func addresses(out []*nodev1.Outbound) []string {
	clean := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 32
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}
	env := make([]string, 0, len(out))
	for _, o := range out {
		env = append(env, "LEGATION_OUTBOUND_"+strings.Map(clean, o.Service)+"="+o.Listen)
	}
	return env
}
