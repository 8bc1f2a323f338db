// Package session keeps programs that were started under attestation, each
// with its own Envoy: who the program is, what its Envoy is told, what that
// Envoy acknowledged, who is on its connections, and whose connections end
// when an identity is taken away. The session's parent process ("run") is the
// parent of program and Envoy, and does what only a parent may.
package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/clock"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/telemetry"
	"github.com/prometheus/client_golang/prometheus"
)

// Link is what sessions need of the link to the control plane.
type Link interface {
	// WatchSubject asks for a proxy's configuration until UnwatchSubject.
	WatchSubject(subject *nodev1.Subject)
	UnwatchSubject(id string)
	// Report queues lines for the control plane; it does not block.
	Report(req *nodev1.ReportRequest)
}

// Params are a Server's inputs.
type Params struct {
	TrustDomain string
	// RunDir gets a 0700 folder for each session.
	RunDir   string
	Manager  *svid.Manager
	Attestor *workload.Attestor
	Views    upstream.Views
	Link     Link
	Engine   *distribute.Engine
	// MaxSessions bounds sessions on this node; 0 is 1024.
	MaxSessions int
	Clock       clock.Clock
	Log         *slog.Logger
	Registerer  prometheus.Registerer
	SDS         *sds.Metrics // of all xDS streams of this agent; may be nil
}

// Server serves localv1.Sessions.
type Server struct {
	localv1.UnimplementedSessionsServer
	p       Params
	metrics *envoy.Metrics
	running sync.WaitGroup
	closing atomic.Bool // sessions that end now are resumed with the next agent
	revoked revokedSerials
	talk    *telemetry.Sampler

	mu       sync.Mutex // guards sessions
	sessions map[string]*session
}

// New returns a Server. It starts nothing.
func New(p Params) *Server {
	if p.MaxSessions == 0 {
		p.MaxSessions = 1024
	}
	if p.Clock == nil {
		p.Clock = clock.System
	}
	s := &Server{p: p, metrics: envoy.NewMetrics(p.Registerer), sessions: map[string]*session{}, talk: telemetry.NewSampler(20, time.Minute)}
	if p.Registerer != nil {
		p.Registerer.MustRegister(collector{s})
	}
	return s
}

// Close announces that this agent ends: the folders of sessions stay, so that
// their Envoys find the next agent at the same socket. Call it before the gRPC
// server is stopped.
func (s *Server) Close() { s.closing.Store(true) }

// Wait returns when every session has ended. Call it after the gRPC server
// was stopped.
func (s *Server) Wait() { s.running.Wait() }

// Open keeps one session for as long as its stream lives.
func (s *Server) Open(stream localv1.Sessions_OpenServer) error {
	s.running.Add(1)
	defer s.running.Done()
	err := s.open(stream)
	if err != nil && stream.Context().Err() == nil {
		uid := "?"
		if caller, ok := workload.FromContext(stream.Context()); ok {
			uid = fmt.Sprint(caller.UID())
		}
		if ok, left := s.talk.Allow(uid); ok { // any local process can try over and over
			s.p.Log.Warn("session ended", "uid", uid, "error", err, "left_out", left)
		}
	}
	return fault.GRPC(err)
}

func (s *Server) open(stream localv1.Sessions_OpenServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	caller, ok := workload.FromContext(ctx)
	if !ok {
		return fault.New(fault.Denied, "a session is opened over the agent's Unix socket")
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return fault.New(fault.Invalid, "the first message of a session is its start")
	}
	if start.TrustDomain != "" && start.TrustDomain != s.p.TrustDomain {
		return fault.New(fault.Invalid, "this agent is of trust domain %s, not %s", s.p.TrustDomain, start.TrustDomain)
	}
	if caller.UID() != 0 && start.EnvoyUid != caller.UID() {
		return fault.New(fault.Denied, "uid %d may not have an Envoy that runs as uid %d", caller.UID(), start.EnvoyUid)
	}
	sn := &session{
		server: s, start: start, run: caller, runPID: caller.PID(), runUID: caller.UID(),
		out: make(chan *localv1.SessionResponse, 64), cancel: cancel, configured: make(chan struct{}, 1),
		acked: map[string]uint64{}, wanted: map[string]string{}, nowhere: map[string]bool{}, statuses: map[statusKey]distribute.Status{},
		ready: make(chan struct{}), look: make(chan struct{}, 1), lately: make(chan struct{}, 1), closing: map[string]*ending{}, late: map[string][]*localv1.SocketPair{},
	}
	if err := s.name(sn); err != nil {
		return err
	}
	if err := s.add(sn); err != nil {
		return err
	}
	defer s.remove(sn)
	if err := sn.begin(ctx); err != nil {
		return err
	}
	defer sn.end()

	s.begun(sn)
	said, read := make(chan *localv1.SessionRequest), make(chan error, 1)
	s.running.Go(func() { // ends with the stream, which ends when this call returns
		for {
			m, err := stream.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				read <- err
				return
			}
			select {
			case said <- m:
			case <-ctx.Done():
			}
		}
	})
	group := sn.serve(ctx, cancel)
	defer group.Wait()
	defer cancel(nil)
	gone := caller.Done()
	for {
		select {
		case <-gone: // a copy of its connection in other hands is served no longer
			return fault.New(fault.Denied, "the session's parent (pid %d) has ended", caller.PID())
		case m := <-sn.out:
			if err := stream.Send(m); err != nil {
				return err
			}
		case m := <-said:
			sn.handle(m, cancel)
		case err := <-read:
			return err
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			return nil
		}
	}
}

// name gives a session its id: a new one, or that of one which a restart of
// this agent interrupted. Whoever resumes it must be the process that opened
// it; if nothing is left of it, the id is free.
func (s *Server) name(sn *session) error {
	sn.id = sn.start.Resume
	if sn.id == "" {
		id, err := newID()
		if err != nil {
			return err
		}
		sn.id = id
	} else if raw, err := hex.DecodeString(sn.id); err != nil || len(raw) != idBytes || hex.EncodeToString(raw) != sn.id {
		return fault.New(fault.Invalid, "resume a session: %.40q is not the id of one", sn.id)
	}
	sn.dir = filepath.Join(s.p.RunDir, sn.id)
	sn.log = s.p.Log.With("session", sn.id)
	if sn.start.Resume == "" {
		return nil
	}
	sn.envoyPID = sn.start.EnvoyPid
	r, err := s.load(sn.id)
	if err != nil {
		return nil // prepareDir refuses a folder that is there
	}
	sn.record, sn.resumed = r, true
	return r.proves(sn)
}

const idBytes = 6

func newID() (string, error) {
	b := make([]byte, idBytes)
	if _, err := rand.Read(b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

func (s *Server) add(sn *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) >= s.p.MaxSessions {
		return fault.New(fault.Limited, "this agent has %d sessions already, its limit", len(s.sessions))
	}
	if s.sessions[sn.id] != nil {
		return fault.New(fault.Conflict, "session %s is open", sn.id)
	}
	if sn.runUID != 0 { // nobody but root may fill it up for others
		have := 0
		for _, o := range s.sessions {
			if o.runUID == sn.runUID {
				have++
			}
		}
		if have >= max(1, s.p.MaxSessions/4) {
			return fault.New(fault.Limited, "uid %d has %d sessions already, its limit", sn.runUID, have)
		}
	}
	s.sessions[sn.id] = sn
	return nil
}

// begun lets others see the session: what begin sets stands.
func (s *Server) begun(sn *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn.visible = true
}

func (s *Server) remove(sn *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sn.id)
}

func (s *Server) get(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sn := s.sessions[id]; sn != nil && sn.visible {
		return sn
	}
	return nil
}

func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*session, 0, len(s.sessions))
	for _, sn := range s.sessions {
		if sn.visible {
			list = append(list, sn)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	return list
}

// Subscriber is how a session's Envoy is called in the ledger.
func Subscriber(session string) string { return "envoy/" + session }

// OnStatus takes what Envoys acknowledged or refused.
func (s *Server) OnStatus(list []distribute.Status) {
	for _, st := range list {
		if len(st.Subscriber) > 6 && st.Subscriber[:6] == "envoy/" {
			if sn := s.get(st.Subscriber[6:]); sn != nil {
				sn.status(st)
			}
		}
	}
}

// OnConfig takes a change of one subject's configuration, or why there is
// none.
func (s *Server) OnConfig(subject string, changes []distribute.Change, refusal error) {
	sn := s.get(subject)
	if sn == nil {
		return
	}
	if refusal != nil {
		sn.warn("the control plane refuses to configure this proxy: " + refusal.Error())
		sn.noteConfigured()
		return
	}
	sn.configure(changes)
}

// Connections lists live connections and failures of all sessions, or of one
// session or identity.
func (s *Server) Connections(req *localv1.ConnectionsRequest) *localv1.ConnectionsResponse {
	r := &localv1.ConnectionsResponse{}
	for _, sn := range s.all() {
		if req.Session != "" && req.Session != sn.id || req.SpiffeId != "" && req.SpiffeId != sn.spiffeID() {
			continue
		}
		sn.describe(r)
	}
	sort.SliceStable(r.Connections, func(i, j int) bool { return r.Connections[i].SinceUnixNano < r.Connections[j].SinceUnixNano })
	sort.SliceStable(r.Failures, func(i, j int) bool { return r.Failures[i].AtUnixNano > r.Failures[j].AtUnixNano })
	return r
}

// Status lists the sessions' Envoys as subscribers.
func (s *Server) Status() []*localv1.SubscriberStatus {
	var list []*localv1.SubscriberStatus
	for _, sn := range s.all() {
		list = append(list, sn.subscriberStatus())
	}
	return list
}

// Snapshot is everything to report after a reconnect.
func (s *Server) Snapshot() *nodev1.ReportRequest {
	r := &nodev1.ReportRequest{}
	for _, sn := range s.all() {
		r.States = append(r.States, sn.states()...)
		sn.mu.Lock()
		if sn.seen != nil {
			r.Served = append(r.Served, sn.seen)
		}
		sn.mu.Unlock()
	}
	return r
}

// Admins are the sessions' Envoy admin sockets, by session.
func (s *Server) Admins() map[string]string {
	m := map[string]string{}
	for _, sn := range s.all() {
		m[sn.id] = sn.adminSocket()
	}
	return m
}
