package session

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/cutoff"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/grpc"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
)

type statusKey struct{ typ, name string }

// session is one program with its Envoy.
type session struct {
	server *Server
	id     string
	start  *localv1.SessionStart
	run    *workload.Caller // who opened it: the parent of program and Envoy
	runPID int32
	runUID uint32
	dir    string
	log    *slog.Logger
	out    chan *localv1.SessionResponse // written to the stream by one goroutine
	cancel context.CancelCauseFunc       // ends it; the cause is what the parent is told

	resumed    bool          // an agent that has ended left it; record says what
	configured chan struct{} // one token: a change of the configuration came in
	record     *record       // as it is on disk; after begin of watchRevocations alone

	visible bool // guarded by Server.mu: begin is done

	// Set by begin, then read only.
	exposed  string // what is missing between program and Envoy
	child    *workload.Caller
	entry    *nodev1.Entry
	attested *localv1.Attested
	sub      *svid.Subscription
	first    *svid.Update
	logs     *envoy.LogServer
	grpc     *grpc.Server

	readyOnce sync.Once
	ready     chan struct{}
	look      chan struct{} // one token: see what Envoy presents
	lately    chan struct{} // one token: late is not empty

	mu       sync.Mutex // guards what follows
	envoyPID int32
	crl      uint64            // newest CRL number that this Envoy acknowledged
	acked    map[string]uint64 // version of ROOTCA -> CRL number in it
	wanted   map[string]string // listener name -> version to be acknowledged
	nowhere  map[string]bool   // clusters of destinations without endpoints
	told     bool              // configuration was received at least once
	statuses map[statusKey]distribute.Status
	serving  *svid.SVID // the newest, and the version of its secret
	version  string
	presents *svid.SVID                // what Envoy acknowledged
	seen     *nodev1.ServedCertificate // what it was last seen to present
	// servedProblem is what is wrong with that, in words; "" is nothing.
	servedProblem  string
	captured       map[string]uint64 // packets by rule of the capture
	captureProblem string
	closing        map[string]*ending
	late           map[string][]*localv1.SocketPair // connections of revoked peers, by revocation
}

// socketName is where an Envoy finds its agent, in the session's folder.
const socketName = "envoy.sock"

// connections to one session's socket: its Envoy has one for each worker.
const connections = 512

// runs: the program runs already, and its Envoy.
func (sn *session) runs() bool { return sn.start.Resume != "" }

func (sn *session) configScope() distribute.Scope { return distribute.Scope("session/" + sn.id) }
func (sn *session) secretScope() distribute.Scope {
	return distribute.Scope("session/" + sn.id + "/secrets")
}
func (sn *session) socket() string      { return filepath.Join(sn.dir, socketName) }
func (sn *session) adminSocket() string { return filepath.Join(sn.dir, "admin.sock") }

func (sn *session) spiffeID() string {
	if sn.entry == nil {
		return ""
	}
	return sn.entry.SpiffeId
}

// begin attests the stopped child and prepares everything its Envoy needs.
func (sn *session) begin(ctx context.Context) (err error) {
	if err := sn.attest(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			sn.sub.Close()
			sn.child.Close()
			if !sn.resumed { // else its Envoy is still in there
				sn.server.forget(sn.id)
			}
		}
	}()
	if !sn.resumed {
		if err := prepareDir(sn.dir, sn.start.EnvoyUid); err != nil {
			return err
		}
		if err := sn.remember(); err != nil {
			return err
		}
	}
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapParams{NodeID: "legation~" + sn.id, Socket: sn.socket(), AdminSocket: sn.adminSocket()})
	if err != nil {
		return err
	}
	sn.attested = &localv1.Attested{
		Session: sn.id, SpiffeId: sn.entry.SpiffeId, Entry: sn.entry.Name,
		Socket: sn.socket(), EnvoyAdmin: sn.adminSocket(), Bootstrap: bootstrap,
	}
	sn.logs = envoy.NewLogServer(envoy.LogServerParams{Logger: sn.log, Clock: sn.server.p.Clock, Metrics: sn.server.metrics, OnConnect: sn.connected, Nowhere: sn.leadsNowhere})
	sn.out <- &localv1.SessionResponse{Message: &localv1.SessionResponse_Attested{Attested: sn.attested}}
	return nil
}

// selectors of the child as it will run, or, resumed, as it runs.
func (sn *session) selectors(ctx context.Context, child *workload.Caller) ([]workload.Selector, error) {
	if sn.runs() {
		return child.Selectors(ctx)
	}
	file, err := workload.OpenExec(child, int(sn.start.ExecFd))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return workload.SelectorsForExec(ctx, child, file, sn.start.ExecPath)
}

// attest decides who the child is. It must be the caller's own child: a
// session gives its parent the program's network identity.
func (sn *session) attest(ctx context.Context) (err error) {
	child, err := sn.server.p.Attestor.FromPID(int(sn.start.ChildPid))
	if err != nil {
		return fmt.Errorf("attest the program's process %d: %w", sn.start.ChildPid, err)
	}
	defer func() {
		if err != nil {
			child.Close()
		}
	}()
	k, err := childOf(sn.start.ChildPid, sn.run)
	if err != nil {
		return err
	}
	if err := mayBear(sn.start.ChildPid, k, sn.run); err != nil {
		return err
	}
	selectors, err := sn.selectors(ctx, child)
	if err != nil {
		return fmt.Errorf("attest the program: %w", err)
	}
	sub := sn.server.p.Manager.SubscribeAt(selectors, svid.Instance("session/"+sn.id), addressesOf(child))
	defer func() {
		if err != nil {
			sub.Close()
		}
	}()
	first, err := sub.Next(ctx) // held for a while when nothing matches
	if err != nil {
		return err
	}
	wanted := sn.start.SpiffeId
	if sn.resumed {
		wanted = sn.record.SPIFFEID // its Envoy is that, and stays it
	}
	entry, err := choose(first.SVIDs, wanted)
	if err != nil {
		return err
	}
	sn.child, sn.entry, sn.sub, sn.first = child, entry, sub, first
	sn.exposed = exposure(child.UID(), sn.start.EnvoyUid)
	sn.log = sn.log.With("spiffe_id", entry.SpiffeId)
	sn.log.Info("session opened", "pid", sn.start.ChildPid, "entry", entry.Name, "path", sn.start.ExecPath, "resumed", sn.resumed)
	return nil
}

// exposure says what a program of one user can do to an Envoy of another.
func exposure(program, proxy uint32) string {
	switch program {
	case proxy:
		return fmt.Sprintf("program and Envoy are both uid %d: the program can read its Envoy's key; run it as root with --user", program)
	case 0:
		return "the program is root: it can read its Envoy's key and leave a capture; run it with --user"
	}
	return ""
}

func choose(svids []*svid.SVID, wanted string) (*nodev1.Entry, error) {
	var ids []string
	for _, s := range svids {
		if wanted == "" && len(svids) == 1 || s.ID.String() == wanted {
			return s.Entry, nil
		}
		ids = append(ids, s.ID.String())
	}
	if wanted != "" {
		return nil, fault.New(fault.Denied, "this program may not be %s; it may be %s", wanted, strings.Join(ids, ", "))
	}
	return nil, fault.New(fault.Invalid, "several identities match this program: %s; choose one with --spiffe-id", strings.Join(ids, ", "))
}

// serve begins serving: the private socket, the secrets, the configuration,
// the watch for revocations. The group ends with ctx.
func (sn *session) serve(ctx context.Context, cancel context.CancelCauseFunc) *sync.WaitGroup {
	var group sync.WaitGroup
	var l net.Listener
	if !sn.runs() {
		var err error
		if l, err = sn.listen(); err != nil {
			cancel(err)
			return &group
		}
	}
	sn.secrets(sn.first)
	xds := sds.New(sds.Params{
		Engine: sn.server.p.Engine, Log: sn.log, Metrics: sn.server.p.SDS,
		Authorise: func(ctx context.Context) (*sds.Attachment, error) { return sn.authorise(ctx) },
	})
	sn.grpc = grpc.NewServer(append(sds.ServerOptions(), grpc.Creds(workload.NewLimitedCredentials(sn.server.p.Attestor, connections)), grpc.ChainStreamInterceptor(sn.guardLogs))...)
	xds.Register(sn.grpc)
	accesslogv3.RegisterAccessLogServiceServer(sn.grpc, sn.logs)
	run := func(f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	run(func() (err error) {
		if sn.runs() {
			if !sn.listensNowhere() && !sn.settled(ctx) {
				return nil
			}
			if l, err = sn.listen(); err != nil {
				return err
			}
		}
		open := cutoff.New(l)
		defer context.AfterFunc(ctx, open.Cut)() // whoever says nothing does not hold the end up
		return sn.grpc.Serve(open)
	})
	run(func() error { // ends the server with the session
		<-ctx.Done()
		sn.grpc.Stop()
		xds.Wait()
		return nil
	})
	run(func() error { return sn.publish(ctx) })
	run(func() error { return sn.watchRevocations(ctx) })
	run(func() error { return sn.watchServed(ctx) })
	sn.server.p.Link.WatchSubject(&nodev1.Subject{
		Id: sn.id, Entry: sn.entry.Name, SpiffeId: sn.entry.SpiffeId,
		Mode: sn.start.Mode, Inbound: sn.start.Inbound, Outbound: sn.start.Outbound, NoIpv6: sn.start.NoIpv6,
	})
	if sn.listensNowhere() {
		sn.isReady()
	}
	return &group
}

// settled waits until the configuration is whole: a running Envoy that
// connects before would be told that what is missing is gone.
func (sn *session) settled(ctx context.Context) bool {
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-sn.configured:
			quiet = time.After(100 * time.Millisecond) // large ones come in parts
		case <-quiet:
			return true
		}
	}
}

// authorise admits this session's Envoy: the user it runs as, and a child of
// the session's parent. Envoy is never matched by selectors.
func (sn *session) authorise(ctx context.Context) (*sds.Attachment, error) {
	caller, ok := workload.FromContext(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "the session's socket is for its Envoy")
	}
	if caller.UID() != sn.start.EnvoyUid {
		return nil, fault.New(fault.Denied, "uid %d is not this session's Envoy", caller.UID())
	}
	if _, err := childOf(caller.PID(), sn.run); err != nil {
		return nil, fault.New(fault.Denied, "process %d is not this session's Envoy: %w", caller.PID(), err)
	}
	if !caller.Alive() {
		return nil, fault.New(fault.Denied, "process %d has ended", caller.PID())
	}
	return &sds.Attachment{
		Subscriber: Subscriber(sn.id),
		Scopes:     []distribute.Scope{sn.configScope(), sn.secretScope()},
		Done:       caller.Done(),
		Missing: func(_, name string) string {
			return fmt.Sprintf("session %s serves %s: default, ROOTCA, ALL, its SPIFFE ID, and sdsNames %v", sn.id, name, sn.entry.SdsNames)
		},
	}, nil
}

// guardLogs admits the same process alone to the access log, by which it is
// known who is on which connection.
func (sn *session) guardLogs(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.FullMethod == accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName {
		if _, err := sn.authorise(stream.Context()); err != nil {
			return fault.GRPC(err)
		}
	}
	return handler(srv, stream)
}

// publish keeps the session's secrets in step with its SVID and with what is
// trusted: a new CRL does not wait for a certificate. An identity that is
// taken away leaves the session up, with trust and without a certificate:
// peers refuse by CRL what its Envoy still holds, and the program goes on when
// the block is lifted.
func (sn *session) publish(ctx context.Context) error {
	defer sn.server.p.Engine.Drop(sn.secretScope())
	sn.secrets(sn.first)
	gone := false
	sn.sub.Follow(ctx, func(u *svid.Update, err error) {
		sn.secrets(u)
		switch {
		case err == nil && gone:
			sn.log.Info("the identity is back")
		case err != nil && !gone:
			sn.warn("the identity was taken away: " + err.Error())
		}
		gone = err != nil
	})
	return nil
}

// secrets replaces what this session's Envoy is served.
func (sn *session) secrets(u *svid.Update) {
	mine := &svid.Update{Trust: u.Trust}
	for _, s := range u.SVIDs {
		if s.Entry.Name == sn.entry.Name {
			mine.SVIDs = append(mine.SVIDs, s)
		} else { // held, and presented by nobody here
			sn.sub.Served(s)
		}
	}
	resources := sds.Secrets(mine, sds.SecretNames{})
	sn.mu.Lock()
	for _, r := range resources {
		if r.Name == "ROOTCA" {
			for _, n := range u.Trust.CRLNumber {
				sn.acked[r.Version] = max(sn.acked[r.Version], n)
			}
		}
		if r.Name == "default" && len(mine.SVIDs) > 0 {
			sn.serving, sn.version = mine.SVIDs[0], r.Version
		}
	}
	sn.mu.Unlock()
	sn.server.p.Engine.Replace(sn.secretScope(), resources)
}

func (sn *session) end() {
	sn.server.p.Link.UnwatchSubject(sn.id)
	sn.server.p.Engine.Drop(sn.configScope())
	sn.sub.Close()
	sn.child.Close()
	if sn.server.closing.Load() {
		sn.log.Info("session left for the next agent")
		return
	}
	sn.server.p.Manager.Retire(svid.Instance("session/" + sn.id))
	sn.server.forget(sn.id)
	sn.server.p.Link.Report(&nodev1.ReportRequest{Gone: []string{Subscriber(sn.id)}})
	sn.log.Info("session ended")
}

// handle takes a message of the session's parent.
func (sn *session) handle(m *localv1.SessionRequest, cancel context.CancelCauseFunc) {
	switch m := m.Message.(type) {
	case *localv1.SessionRequest_Envoy:
		sn.mu.Lock()
		same := sn.envoyPID == m.Envoy.Pid // of before the agent's restart
		sn.envoyPID = m.Envoy.Pid
		sn.mu.Unlock()
		if !same {
			sn.logs.Table.Reset()
		}
	case *localv1.SessionRequest_Program:
		if err := sn.child.Recheck(); err != nil {
			cancel(fault.New(fault.Denied, "what runs is not what was attested: %w", err))
			return
		}
		sn.log.Info("program started", "pid", sn.start.ChildPid)
	case *localv1.SessionRequest_Closed:
		sn.closed(m.Closed)
	case *localv1.SessionRequest_Captured:
		sn.captureCounted(m.Captured)
	}
}

func (sn *session) warn(text string) {
	sn.log.Warn(text)
	sn.send(&localv1.SessionResponse{Message: &localv1.SessionResponse_Warning{Warning: text}})
}

// sendAll waits until the parent takes what must not be lost, or ctx ends.
func (sn *session) sendAll(ctx context.Context, m *localv1.SessionResponse) {
	select {
	case sn.out <- m:
	case <-ctx.Done():
	}
}

// send queues for the parent. A parent that does not read loses its session
// by its own stream's end; nothing waits for it.
func (sn *session) send(m *localv1.SessionResponse) {
	select {
	case sn.out <- m:
	default:
		sn.log.Error("the session's parent does not read; a message was dropped")
	}
}
