package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/limit"
)

// envoyDoor decides what an Envoy that people run themselves may see over
// SDS: the secrets of the identities that its own process is attested for.
type envoyDoor struct {
	manager *svid.Manager
	engine  *distribute.Engine
	link    *upstream.Link
	holdOff time.Duration
	streams *limit.Slots // by uid
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	next  uint64
	conns map[string]*envoyConn // by subscriber
}

// envoyConn is one stream.
type envoyConn struct {
	pid      int32
	id       string                       // SPIFFE ID of its first identity; "" until it has one
	reason   error                        // why it has none now
	crl      map[string]uint64            // version of a validation context -> CRL number in it
	missing  map[string]string            // name asked for and not served -> why
	statuses map[string]distribute.Status // by secret name
	certs    map[string]served            // by secret name
	held     []*svid.SVID                 // all of the last update
	sub      *svid.Subscription
	// first is closed once it is known what the process may have.
	first     chan struct{}
	firstOnce sync.Once
}

// served is what a name stands for now, with the version of its secret.
type served struct {
	version string
	svid    *svid.SVID
}

// streamsPerUID is how many one user but root may have open at once.
const streamsPerUID = 1024

func newEnvoyDoor(m *svid.Manager, e *distribute.Engine, link *upstream.Link, holdOff time.Duration) *envoyDoor {
	return &envoyDoor{manager: m, engine: e, link: link, holdOff: holdOff, streams: limit.NewSlots(streamsPerUID), conns: map[string]*envoyConn{}}
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
	release := func() {}
	if uid := caller.UID(); uid != 0 {
		if release, ok = d.streams.Acquire(fmt.Sprint(uid)); !ok {
			return nil, fault.New(fault.Limited, "uid %d has %d SDS streams open, its limit; close some first", uid, streamsPerUID)
		}
	}
	selectors, err := caller.Selectors(ctx)
	if err != nil {
		release()
		return nil, err
	}
	sub := d.manager.Subscribe(selectors, svid.Instance(fmt.Sprintf("uid/%d", caller.UID())))
	d.mu.Lock()
	d.next++
	name := fmt.Sprintf("sds/%d/%d", caller.PID(), d.next)
	conn := &envoyConn{pid: caller.PID(), sub: sub, crl: map[string]uint64{}, missing: map[string]string{}, first: make(chan struct{}), statuses: map[string]distribute.Status{}}
	d.conns[name] = conn
	d.mu.Unlock()
	scope := distribute.Scope(name)
	publishing, cancel := context.WithCancel(ctx)
	d.running.Go(func() { d.publish(publishing, caller, conn, scope, sub) })
	closed := func() {
		cancel()
		release()
		sub.Close()
		d.mu.Lock()
		delete(d.conns, name)
		d.mu.Unlock()
		d.link.Report(&nodev1.ReportRequest{Gone: []string{name}})
	}
	if err := d.hold(ctx, conn); err != nil {
		closed()
		return nil, err
	}
	return &sds.Attachment{
		Subscriber: name,
		Scopes:     []distribute.Scope{scope},
		Done:       caller.Done(),
		Missing:    func(_, secret string) string { return d.explain(publishing, conn, secret, selectors) },
		Closed:     closed,
	}, nil
}

// hold waits for what the process may have, as the Workload API does: else a
// name whose certificate is just being signed would be said to be missing.
func (d *envoyDoor) hold(ctx context.Context, conn *envoyConn) error {
	timer := time.NewTimer(d.holdOff + holdSlack)
	defer timer.Stop()
	select {
	case <-conn.first:
	case <-timer.C:
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "the caller waited no longer: %w", ctx.Err())
	}
	return nil
}

// holdSlack is for the answer to "which entry comes near".
const holdSlack = 250 * time.Millisecond

// publish keeps a stream's scope in step with what its process may have. One
// that has never had an identity is given nothing; one whose identity was
// taken away keeps what verifies peers, so that it goes on refusing who is
// revoked. A process that executed something else since it was attested is
// handed nothing more.
func (d *envoyDoor) publish(ctx context.Context, caller *workload.Caller, conn *envoyConn, scope distribute.Scope, sub *svid.Subscription) {
	defer d.engine.Drop(scope)
	sub.Follow(ctx, func(u *svid.Update, err error) {
		if changed := caller.Recheck(); changed != nil { // it executed something else: nothing more for it
			d.mu.Lock()
			conn.reason = changed
			d.mu.Unlock()
			d.engine.Drop(scope)
			conn.firstOnce.Do(func() { close(conn.first) })
			return
		}
		resources := sds.Secrets(u, sds.SecretNames{})
		number := uint64(0)
		for _, n := range u.Trust.CRLNumber {
			number = max(number, n)
		}
		d.mu.Lock()
		conn.reason = err
		if len(u.SVIDs) > 0 {
			conn.id = u.SVIDs[0].ID.String()
		}
		none := conn.id == ""
		names := sds.Names(u, sds.SecretNames{})
		conn.held = u.SVIDs
		conn.certs = make(map[string]served, len(names))
		for _, r := range resources {
			if none {
				continue
			}
			if isContext(r.Name) {
				conn.crl[r.Version] = number
			}
			if v := names[r.Name]; v != nil {
				conn.certs[r.Name] = served{r.Version, v}
			}
		}
		conn.forgetOldLocked()
		d.mu.Unlock()
		if !none {
			d.engine.Replace(scope, resources)
			d.settle(conn)
		}
		conn.firstOnce.Do(func() { close(conn.first) })
	})
}

// maxVersions bounds how many versions of validation contexts are known of.
const maxVersions = 64

// forgetOldLocked drops the oldest versions, save those that are in use: an
// Envoy that acknowledges nothing holds its last good ones for as long.
func (c *envoyConn) forgetOldLocked() {
	if len(c.crl) <= maxVersions {
		return
	}
	used := map[string]bool{}
	for _, st := range c.statuses {
		used[st.Acked], used[st.Sent] = true, true
	}
	versions := slices.SortedFunc(maps.Keys(c.crl), func(a, b string) int { return cmp.Compare(c.crl[a], c.crl[b]) })
	for _, v := range versions[:len(versions)-maxVersions/2] {
		if !used[v] {
			delete(c.crl, v)
		}
	}
}

// settle tells the manager which certificates this Envoy presents: those it
// acknowledged under every name it asked for, and those it did not ask for.
func (d *envoyDoor) settle(conn *envoyConn) {
	d.mu.Lock()
	presented := conn.presentedLocked()
	d.mu.Unlock()
	for _, v := range presented {
		conn.sub.Served(v)
	}
}

func (c *envoyConn) presentedLocked() (list []*svid.SVID) {
	behind := map[string]bool{} // serials
	for name, s := range c.certs {
		if st, asked := c.statuses[name]; asked && st.Acked != s.version {
			behind[s.svid.Serial] = true
		}
	}
	for _, v := range c.held {
		if !behind[v.Serial] {
			list = append(list, v)
		}
	}
	return list
}

// explain says why a name cannot be served to this process, and which entry
// would make it so.
func (d *envoyDoor) explain(ctx context.Context, conn *envoyConn, name string, selectors []workload.Selector) string {
	why := d.whyNot(ctx, conn, name, selectors)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(conn.missing) < maxMissing {
		conn.missing[name] = why
	}
	return why
}

// maxMissing bounds the names of one stream that "why" can tell about.
const maxMissing = 64

func (d *envoyDoor) whyNot(ctx context.Context, conn *envoyConn, name string, selectors []workload.Selector) string {
	d.mu.Lock()
	reason := conn.reason
	d.mu.Unlock()
	matched := d.manager.Match(selectors)
	for _, e := range matched {
		if e.Blocked && (wantsAny(name) || named(e, name)) {
			return fmt.Sprintf("%s is revoked and gets no certificate until that is lifted: legation lift %s", e.SpiffeId, e.SpiffeId)
		}
	}
	view, _ := d.link.View()
	for _, key := range slices.Sorted(maps.Keys(view.Entries)) {
		e := view.Entries[key]
		if !named(e, name) {
			continue
		}
		if lacks := lacking(e, selectors); len(lacks) > 0 {
			return fmt.Sprintf("entry %s (%s) has that name, and this process lacks %s", e.Name, e.SpiffeId, strings.Join(lacks, ", "))
		}
		return fmt.Sprintf("entry %s (%s) has that name and matches; its certificate is not there yet: %v", e.Name, e.SpiffeId, cmp.Or(reason, errSigning))
	}
	switch {
	case len(matched) == 0:
		return "no entry matches this process; " + d.manager.WhyNot(ctx, selectors)
	case wantsAny(name):
		return fmt.Sprintf("entry %s (%s) matches; what it needs is not there yet: %v", matched[0].Name, matched[0].SpiffeId, cmp.Or(reason, errSigning))
	}
	var may []string
	for _, e := range matched {
		may = append(may, e.Name+" ("+e.SpiffeId+")")
	}
	return fmt.Sprintf("this process matches %s, which has no such name; write it into spec.sdsNames of that WorkloadIdentity, or ask for default", strings.Join(may, ", "))
}

var errSigning = errors.New("it is being signed")

// wantsAny: a name that every process with an identity is served.
func wantsAny(name string) bool { return name == "default" || isContext(name) }

func named(e *nodev1.Entry, name string) bool {
	return e.SpiffeId == name || slices.Contains(e.SdsNames, name)
}

func lacking(e *nodev1.Entry, selectors []workload.Selector) []string {
	var list []string
	for _, s := range e.Selectors {
		if !slices.Contains(selectors, s) {
			list = append(list, s)
		}
	}
	return list
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
		if st.Sent != "" {
			delete(conn.missing, st.Name)
		}
		if _, told := conn.statuses[st.Name]; st.Gone() && !told {
			continue // a name that is not served: who asks for many costs nothing
		}
		if st.Gone() {
			delete(conn.statuses, st.Name)
		} else {
			conn.statuses[st.Name] = st
		}
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
	if isContext(st.Name) {
		line.AckedCrlNumber = c.crl[st.Acked]
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

// asking lists who asks in vain for a name ("" is any), for people.
func (d *envoyDoor) asking(name string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []string
	for _, conn := range d.conns {
		for asked, why := range conn.missing {
			if name == "" || asked == name {
				list = append(list, fmt.Sprintf("process %d asks for SDS name %q in vain: %s", conn.pid, asked, why))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
