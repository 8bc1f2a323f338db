package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
)

// envoyDoor decides what an Envoy that people run themselves may see over
// SDS: the secrets of the identities that its own process is attested for.
type envoyDoor struct {
	manager *svid.Manager
	engine  *distribute.Engine
	link    *upstream.Link
	log     *slog.Logger
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	next  uint64
	conns map[string]*envoyConn // by subscriber
}

// envoyConn is one stream.
type envoyConn struct {
	pid      int32
	id       string            // SPIFFE ID of its first identity
	crl      map[string]uint64 // version of a validation context -> CRL number in it
	acked    uint64
	statuses map[string]distribute.Status // by secret name
	certs    map[string]served            // by secret name
	held     []*svid.SVID                 // all of the last update
	sub      *svid.Subscription
}

// served is what a name stands for now, with the version of its secret.
type served struct {
	version string
	svid    *svid.SVID
}

func newEnvoyDoor(m *svid.Manager, e *distribute.Engine, link *upstream.Link, log *slog.Logger) *envoyDoor {
	return &envoyDoor{manager: m, engine: e, link: link, log: log, conns: map[string]*envoyConn{}}
}

func (d *envoyDoor) wait() { d.running.Wait() }

// authorise attests the process behind a stream and begins to publish its
// secrets. A process that no entry matches keeps its stream: names appear
// when an entry does.
func (d *envoyDoor) authorise(ctx context.Context) (*sds.Attachment, error) {
	caller, ok := workload.FromContext(ctx)
	if !ok {
		return nil, fault.New(fault.Denied, "the caller's process is not known")
	}
	selectors, err := caller.Selectors(ctx)
	if err != nil {
		return nil, err
	}
	sub := d.manager.Subscribe(selectors, svid.Instance(fmt.Sprintf("uid/%d", caller.UID())))
	d.mu.Lock()
	d.next++
	name := fmt.Sprintf("sds/%d/%d", caller.PID(), d.next)
	conn := &envoyConn{pid: caller.PID(), sub: sub, crl: map[string]uint64{}, statuses: map[string]distribute.Status{}}
	d.conns[name] = conn
	d.mu.Unlock()
	scope := distribute.Scope(name)
	publishing, cancel := context.WithCancel(ctx)
	d.running.Go(func() { d.publish(publishing, name, conn, scope, sub) })
	return &sds.Attachment{
		Subscriber: name,
		Scopes:     []distribute.Scope{scope},
		Done:       caller.Done(),
		Missing:    func(_, secret string) string { return d.explain(secret, selectors) },
		Closed: func() {
			cancel()
			sub.Close()
			d.mu.Lock()
			delete(d.conns, name)
			d.mu.Unlock()
			d.link.Report(&nodev1.ReportRequest{Gone: []string{name}})
		},
	}, nil
}

// publish keeps a stream's scope in step with what its process may have.
func (d *envoyDoor) publish(ctx context.Context, name string, conn *envoyConn, scope distribute.Scope, sub *svid.Subscription) {
	defer d.engine.Drop(scope)
	for ctx.Err() == nil {
		_, changed := d.link.View()
		u, err := sub.Next(ctx)
		if err != nil {
			if ctx.Err() == nil && fault.Is(err, fault.Denied) {
				d.engine.Drop(scope)
			}
			select { // an entry may appear, or a block be lifted
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		resources := sds.Secrets(u, sds.SecretNames{})
		number := uint64(0)
		for _, n := range u.Trust.CRLNumber {
			number = max(number, n)
		}
		d.mu.Lock()
		conn.id = u.SVIDs[0].ID.String()
		if len(conn.crl) > 64 {
			conn.crl = map[string]uint64{}
		}
		names := sds.Names(u, sds.SecretNames{})
		conn.held = u.SVIDs
		conn.certs = make(map[string]served, len(names))
		for _, r := range resources {
			conn.crl[r.Version] = number
			if v := names[r.Name]; v != nil {
				conn.certs[r.Name] = served{r.Version, v}
			}
		}
		d.mu.Unlock()
		d.engine.Replace(scope, resources)
		d.settle(conn)
	}
}

// settle tells the manager which certificates this Envoy presents: those it
// acknowledged under every name it asked for, and those it did not ask for.
func (d *envoyDoor) settle(conn *envoyConn) {
	behind := map[string]bool{} // serials
	d.mu.Lock()
	for name, c := range conn.certs {
		if st, asked := conn.statuses[name]; asked && st.Acked != c.version {
			behind[c.svid.Serial] = true
		}
	}
	held := conn.held
	d.mu.Unlock()
	for _, v := range held {
		if !behind[v.Serial] {
			conn.sub.Served(v)
		}
	}
}

// explain says which name, why nothing matches and which entry would.
func (d *envoyDoor) explain(secret string, selectors []workload.Selector) string {
	if len(d.manager.Match(selectors)) > 0 {
		return fmt.Sprintf("no identity of this process goes by %q; declare it in spec.sdsNames of its WorkloadIdentity, or ask: legation why --sds-name %s", secret, secret)
	}
	near := d.manager.Near(selectors)
	if len(near) == 0 {
		return fmt.Sprintf("%q: no entry of this node comes near a process with %s; declare a WorkloadIdentity", secret, strings.Join(selectors, " "))
	}
	return fmt.Sprintf("%q: no entry matches this process; the nearest is %s (%s): %s", secret, near[0].Entry, near[0].SpiffeId, near[0].Reason)
}

// onStatus takes what these Envoys acknowledged.
func (d *envoyDoor) onStatus(list []distribute.Status) {
	var lines []*nodev1.SubscriberState
	moved := map[*envoyConn]bool{}
	d.mu.Lock()
	for _, st := range list {
		conn := d.conns[st.Subscriber]
		if conn == nil {
			continue
		}
		if st.Acked != "" {
			conn.acked = max(conn.acked, conn.crl[st.Acked])
		}
		conn.statuses[st.Name] = st
		moved[conn] = true
		lines = append(lines, conn.line(st))
	}
	d.mu.Unlock()
	for conn := range moved {
		d.settle(conn)
	}
	if len(lines) > 0 {
		d.link.Report(&nodev1.ReportRequest{States: lines})
	}
}

func (c *envoyConn) line(st distribute.Status) *nodev1.SubscriberState {
	line := &nodev1.SubscriberState{
		Subscriber: st.Subscriber, Class: nodev1.Class_CLASS_ACKNOWLEDGED, SpiffeId: c.id, Type: st.Type, Name: st.Name,
		SentVersion: st.Sent, AckedVersion: st.Acked, Error: st.Error, SinceUnixNano: st.Since.UnixNano(),
	}
	if _, hasCRL := c.crl[st.Acked]; hasCRL && isContext(st.Name) {
		line.AckedCrlNumber = c.acked
	}
	return line
}

// isContext reports whether a secret's name is that of a validation context.
func isContext(name string) bool {
	if name == "ROOTCA" || name == "ALL" || strings.HasSuffix(name, "/validation_context") {
		return true
	}
	rest, ok := strings.CutPrefix(name, "spiffe://")
	return ok && !strings.Contains(rest, "/")
}

// states is everything these Envoys hold, for a report after a reconnect.
func (d *envoyDoor) states() []*nodev1.SubscriberState {
	d.mu.Lock()
	defer d.mu.Unlock()
	var lines []*nodev1.SubscriberState
	for _, conn := range d.conns {
		for st := range maps.Values(conn.statuses) {
			lines = append(lines, conn.line(st))
		}
	}
	return lines
}

// status lists these Envoys for people.
func (d *envoyDoor) status() []*localv1.SubscriberStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*localv1.SubscriberStatus
	for name, conn := range d.conns {
		s := &localv1.SubscriberStatus{Subscriber: name, SpiffeId: conn.id, Pid: conn.pid}
		for _, st := range conn.statuses {
			s.States = append(s.States, conn.line(st))
		}
		list = append(list, s)
	}
	return list
}
