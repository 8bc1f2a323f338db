package upstream

import (
	"context"
	"slices"
	"sync"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"google.golang.org/protobuf/proto"
)

// Bounds of the report queue and of one message.
const (
	maxStates  = 1 << 16
	maxEnded   = 4096
	perMessage = 500
	// maxSuperseded is below what any control plane takes at once.
	maxSuperseded = 100
)

// reports coalesces what is to be reported: of each line the latest.
type reports struct {
	metrics *metrics

	mu         sync.Mutex // guards all below
	gone       map[string]struct{}
	states     map[lineKey]*nodev1.SubscriberState
	served     map[string]*nodev1.ServedCertificate
	ended      []*nodev1.ConnectionsEnded // events: each is told
	superseded map[string]struct{}        // serials
	wake       chan struct{}              // one token: there is something
}

type lineKey struct{ subscriber, typ, name string }

func newReports(m *metrics) *reports {
	r := &reports{metrics: m, wake: make(chan struct{}, 1)}
	r.resetLocked()
	return r
}

// resetLocked forgets lines; events stay.
func (r *reports) resetLocked() {
	r.gone, r.states, r.served = map[string]struct{}{}, map[lineKey]*nodev1.SubscriberState{}, map[string]*nodev1.ServedCertificate{}
	r.superseded = map[string]struct{}{}
}

// Report queues lines for the control plane and returns at once. Of a line
// that is reported again before it was sent only the latest is. The messages
// must not be changed afterwards.
func (l *Link) Report(req *nodev1.ReportRequest) {
	r := l.reports
	r.mu.Lock()
	r.addLocked(req)
	r.mu.Unlock()
	r.wakeUp()
}

func (r *reports) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reports) addLocked(req *nodev1.ReportRequest) {
	for _, name := range req.GetGone() {
		// Gone is told first: what was queued about it before is void.
		for key := range r.states {
			if key.subscriber == name {
				delete(r.states, key)
			}
		}
		delete(r.served, name)
		if len(r.gone) < maxStates {
			r.gone[name] = struct{}{}
		} else {
			r.metrics.dropped.Inc()
		}
	}
	for _, s := range req.GetStates() {
		key := lineKey{s.GetSubscriber(), s.GetType(), s.GetName()}
		if _, ok := r.states[key]; !ok && len(r.states) >= maxStates {
			r.metrics.dropped.Inc()
			continue
		}
		r.states[key] = s
	}
	for _, s := range req.GetServed() {
		if _, ok := r.served[s.GetSubscriber()]; !ok && len(r.served) >= maxStates {
			r.metrics.dropped.Inc()
			continue
		}
		r.served[s.GetSubscriber()] = s
	}
	for _, serial := range req.GetSupersededSerials() {
		if len(r.superseded) < maxEnded { // else with the next snapshot
			r.superseded[serial] = struct{}{}
		}
	}
	r.ended = append(r.ended, req.GetEnded()...)
	if over := len(r.ended) - maxEnded; over > 0 {
		r.metrics.dropped.Add(float64(over))
		r.ended = slices.Clone(r.ended[over:])
	}
}

// take removes up to one message's worth from the queue; nil when it is
// empty.
func (r *reports) take() *nodev1.ReportRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	req := &nodev1.ReportRequest{}
	room := perMessage
	for name := range r.gone {
		if room--; room < 0 {
			return req // states follow only after all that is gone
		}
		req.Gone = append(req.Gone, name)
		delete(r.gone, name)
	}
	for key, s := range r.states {
		if room--; room < 0 {
			break
		}
		req.States = append(req.States, s)
		delete(r.states, key)
	}
	for name, s := range r.served {
		if room--; room < 0 {
			break
		}
		req.Served = append(req.Served, s)
		delete(r.served, name)
	}
	for serial := range r.superseded {
		if room--; room < 0 || len(req.SupersededSerials) == maxSuperseded {
			break
		}
		req.SupersededSerials = append(req.SupersededSerials, serial)
		delete(r.superseded, serial)
	}
	n := min(len(r.ended), max(room, 0))
	req.Ended, r.ended = slices.Clone(r.ended[:n]), r.ended[n:]
	if len(req.Gone)+len(req.States)+len(req.Served)+len(req.Ended)+len(req.SupersededSerials) == 0 {
		return nil
	}
	return req
}

// untake puts the events of a message that was not sent back; its lines come
// with the next snapshot.
func (r *reports) untake(req *nodev1.ReportRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(slices.Clone(req.GetEnded()), r.ended...)
}

// sendReports tells everything that holds, then what changes.
func (l *Link) sendReports(ctx context.Context, s *session) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := s.client.Report(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&nodev1.ReportRequest{Hello: l.hello()}); err != nil {
		_, err = stream.Recv()
		return err
	}
	responses := pump(cancel, 1, stream.Recv)
	defer drained(responses, cancel)
	first, err := within(ctx, responses, helloTimeout)
	if err != nil {
		return err
	}
	if err := l.checkHello(first.GetHello()); err != nil {
		return err
	}
	l.resnap()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case _, ok := <-responses:
			if !ok {
				return context.Cause(ctx)
			}
			continue
		case <-l.reports.wake:
		}
		for req := l.reports.take(); req != nil; req = l.reports.take() {
			if err := stream.Send(req); err != nil {
				l.reports.untake(req)
				return broken(ctx, responses)
			}
		}
	}
}

// resnap replaces the queued lines by a snapshot of all that hold: a new
// stream begins with an empty ledger. What is reported while the snapshot is
// taken stays queued and is the later word.
func (l *Link) resnap() {
	r := l.reports
	if l.p.Snapshot != nil {
		r.mu.Lock()
		r.resetLocked()
		r.mu.Unlock()
		if snapshot := l.p.Snapshot(); snapshot != nil {
			snapshot = proto.Clone(snapshot).(*nodev1.ReportRequest)
			r.mu.Lock()
			queued := &nodev1.ReportRequest{}
			for _, s := range r.states {
				queued.States = append(queued.States, s)
			}
			for _, s := range r.served {
				queued.Served = append(queued.Served, s)
			}
			for serial := range r.superseded {
				queued.SupersededSerials = append(queued.SupersededSerials, serial)
			}
			for name := range r.gone {
				queued.Gone = append(queued.Gone, name)
			}
			r.resetLocked()
			r.addLocked(snapshot)
			r.addLocked(queued)
			r.mu.Unlock()
		}
	}
	r.wakeUp()
}
