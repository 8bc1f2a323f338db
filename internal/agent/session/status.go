package session

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/agent/svid"
	"github.com/legation-io/legation/internal/distribute"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// configure hands a change on to this session's Envoy.
func (sn *session) configure(changes []distribute.Change) {
	var nowhere []string
	sn.mu.Lock()
	sn.told = true
	for i, c := range changes {
		changes[i].Scope = sn.configScope()
		if c.Resource == nil {
			delete(sn.statuses, statusKey{c.Type, c.Name})
		}
		if c.Type == typeEndpoint {
			if text, news := sn.leadsLocked(c); news {
				nowhere = append(nowhere, text)
			}
		}
		if c.Type != typeListener {
			continue
		}
		if c.Resource == nil {
			delete(sn.wanted, c.Name)
		} else {
			sn.wanted[c.Name] = c.Resource.Version
		}
	}
	sn.mu.Unlock()
	for _, text := range nowhere { // before Envoy can acknowledge, and the program start
		sn.warn(text + "; connections there are reset until then")
	}
	sn.server.p.Engine.Apply(changes...)
	sn.noteConfigured()
}

// leadsLocked notes whether a destination that was asked for leads somewhere,
// and says when it does not any more, or never did.
func (sn *session) leadsLocked(c distribute.Change) (text string, news bool) {
	if sn.start.Mode != nodev1.Mode_MODE_EXPLICIT || c.Resource == nil || !empty(c.Resource.Body) {
		delete(sn.nowhere, c.Name)
		return "", false
	}
	news = !sn.nowhere[c.Name]
	sn.nowhere[c.Name] = true
	return undeclared(c.Name), news
}

// undeclared says what a destination lacks, by its cluster:
// outbound|PORT|SERVICE.NAMESPACE.
func undeclared(cluster string) string {
	parts := strings.Split(cluster, "|")
	if len(parts) != 3 {
		return "nothing is declared to be at " + cluster
	}
	return "no Service " + parts[2] + " with port " + parts[1] + " and endpoints is declared"
}

// leadsNowhere is the same by the local port that leads there.
func (sn *session) leadsNowhere(at netip.AddrPort) string {
	for _, out := range sn.start.Outbound {
		if out.Listen != at.String() {
			continue
		}
		service := strings.TrimSuffix(strings.TrimSuffix(out.Service, ".cluster.local"), ".svc")
		if !strings.Contains(service, ".") {
			service += "." + sn.entry.Namespace
		}
		return undeclared(fmt.Sprintf("outbound|%d|%s", out.Port, service))
	}
	return "nothing is declared to be at " + at.String()
}

// empty reports whether a ClusterLoadAssignment has no endpoints (field 2).
// Its Go type would be a good part of the agent's binary.
func empty(body []byte) bool {
	for len(body) > 0 {
		field, _, n := protowire.ConsumeField(body)
		if n < 0 || field == 2 {
			return false
		}
		body = body[n:]
	}
	return true
}

// noteConfigured wakes whoever waits for the configuration to be whole.
func (sn *session) noteConfigured() {
	select {
	case sn.configured <- struct{}{}:
	default:
	}
}

// status takes one line of the local ledger and passes it on.
func (sn *session) status(st distribute.Status) {
	sn.mu.Lock()
	if key := (statusKey{st.Type, st.Name}); st.Gone() {
		delete(sn.statuses, key)
	} else {
		sn.statuses[key] = st
	}
	if st.Type == sds.TypeSecret && st.Name == "ROOTCA" && st.Acked != "" {
		sn.crl = max(sn.crl, sn.acked[st.Acked])
		if n := sn.acked[st.Acked]; len(sn.acked) > 8 { // older versions never come back
			maps.DeleteFunc(sn.acked, func(_ string, number uint64) bool { return number < n })
		}
	}
	var served *svid.SVID
	if st.Type == sds.TypeSecret && st.Name == "default" && st.Acked != "" && st.Acked == sn.version {
		served = sn.serving
		sn.presents = served
	}
	ready := sn.isReadyLocked()
	line := sn.lineLocked(st)
	sn.mu.Unlock()
	if served != nil {
		sn.sub.Served(served)
		sn.lookSoon()
	}
	if st.Error != "" {
		sn.refused(st)
	}
	sn.server.p.Link.Report(&nodev1.ReportRequest{States: []*nodev1.SubscriberState{line}})
	if ready {
		sn.isReady()
	}
}

// isReady tells the parent, once, that the program may start.
func (sn *session) isReady() {
	sn.readyOnce.Do(func() {
		close(sn.ready)
		sn.send(&localv1.SessionResponse{Message: &localv1.SessionResponse_Ready{Ready: &localv1.Ready{}}})
	})
}

// listensNowhere: nothing was asked for that a listener would be for, so that
// there is neither a listener nor a secret to wait for.
func (sn *session) listensNowhere() bool {
	return sn.start.Mode == nodev1.Mode_MODE_EXPLICIT && len(sn.start.Inbound)+len(sn.start.Outbound) == 0
}

// refused tells the parent what its Envoy does not take. A port that cannot
// be had ends a session whose program has not started: it would wait in vain.
func (sn *session) refused(st distribute.Status) {
	text := "Envoy refuses " + st.Name + ": " + st.Error
	select {
	case <-sn.ready:
	default:
		if err := sn.unbound(st.Error); err != nil && !sn.runs() {
			sn.log.Warn(text)
			sn.cancel(err)
			return
		}
	}
	sn.warn(text)
}

// isReadyLocked: Envoy acknowledged every listener and the two secrets that
// each of them waits for.
func (sn *session) isReadyLocked() bool {
	if !sn.told || len(sn.wanted) == 0 {
		return false
	}
	for name, version := range sn.wanted {
		if sn.statuses[statusKey{typeListener, name}].Acked != version {
			return false
		}
	}
	for _, name := range []string{"default", "ROOTCA"} {
		if sn.statuses[statusKey{sds.TypeSecret, name}].Acked == "" {
			return false
		}
	}
	return true
}

func (sn *session) lineLocked(st distribute.Status) *nodev1.SubscriberState {
	line := &nodev1.SubscriberState{
		Subscriber: Subscriber(sn.id), Class: nodev1.Class_CLASS_ACKNOWLEDGED, SpiffeId: sn.spiffeID(),
		Type: st.Type, Name: st.Name, SentVersion: st.Sent, AckedVersion: st.Acked, Error: st.Error, SinceUnixNano: st.Since.UnixNano(),
	}
	if st.Type == sds.TypeSecret && st.Name == "ROOTCA" {
		line.AckedCrlNumber = sn.crl
	}
	return line
}

// states are all lines of this session's Envoy, in a fixed order.
func (sn *session) states() []*nodev1.SubscriberState {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	keys := slices.SortedFunc(maps.Keys(sn.statuses), func(a, b statusKey) int {
		if a.typ != b.typ {
			return compare(a.typ, b.typ)
		}
		return compare(a.name, b.name)
	})
	lines := make([]*nodev1.SubscriberState, len(keys))
	for i, k := range keys {
		lines[i] = sn.lineLocked(sn.statuses[k])
	}
	return lines
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	if a > b {
		return 1
	}
	return 0
}

func (sn *session) subscriberStatus() *localv1.SubscriberStatus {
	states := sn.states()
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return &localv1.SubscriberStatus{Subscriber: Subscriber(sn.id), SpiffeId: sn.spiffeID(), Pid: sn.envoyPID, States: states, Served: sn.seen, Exposed: sn.exposed}
}

// describe adds this session's connections and failures.
func (sn *session) describe(r *localv1.ConnectionsResponse) {
	if sn.logs == nil {
		return
	}
	for _, c := range sn.logs.Table.Open(nil) {
		pair := c.Pair()
		r.Connections = append(r.Connections, &localv1.Connection{
			Session: sn.id, SpiffeId: sn.spiffeID(), Direction: string(c.Direction),
			Local: pair.Local.String(), Remote: pair.Remote.String(), PeerId: c.PeerID, PeerSerial: c.PeerSerial,
			TlsVersion: c.TLSVersion, Cipher: c.Cipher, Group: c.Group, SinceUnixNano: c.Since.UnixNano(), Cluster: c.UpstreamCluster,
		})
	}
	for _, f := range sn.logs.Failures() {
		r.Failures = append(r.Failures, &localv1.HandshakeFailure{
			Session: sn.id, SpiffeId: sn.spiffeID(), Direction: string(f.Direction), Remote: f.Remote, Destination: f.Destination,
			PeerId: f.PeerID, Cause: string(f.Cause), Reason: f.Reason, AtUnixNano: f.Time.UnixNano(),
		})
	}
}
