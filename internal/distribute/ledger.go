package distribute

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// state of a delivery.
type state uint8

const (
	pending state = iota
	acked
	refused
)

// delivery is one response as the ledger remembers it. All names of a
// response share it; once acknowledged only state and since remain.
type delivery struct {
	nonce uint64
	state state
	since time.Time
	// changed is when the oldest change in here happened; zero when it only
	// told what was so already.
	changed time.Time
	err     string
	// previous is the version last acknowledged of the names in here. It is
	// not the Resource: nobody's old key is to be kept for the ledger.
	previous map[string]string
	// resources and removed are kept until the answer; resources is the
	// Response's own slice.
	resources []*Resource
	removed   []string
}

func (d *delivery) keep(name, version string) {
	if d.previous == nil {
		d.previous = make(map[string]string)
	}
	d.previous[name] = version
}

func formatNonce(n uint64) string { return strconv.FormatUint(n, 10) }

// acked returns the version the subscriber last acknowledged under the name,
// or "".
func (w *watch) acked(name string) string {
	h, ok := w.held[name]
	switch {
	case !ok:
		return ""
	case h.in.state != acked:
		return h.in.previous[name]
	case h.sent == nil:
		return ""
	}
	return h.sent.Version
}

// settle records the answer to a response. A nonce that is not in flight is
// stale and ignored. It returns the names whose line changed.
func (w *watch) settle(nonce, refusal string, now time.Time) []string {
	n, err := strconv.ParseUint(nonce, 10, 64)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(w.flight, func(d *delivery) bool { return d.nonce == n })
	if i < 0 {
		return nil
	}
	d := w.flight[i]
	w.flight = slices.Delete(w.flight, i, i+1)
	if len(w.flight) == 0 {
		w.flight = nil
	}
	d.since, d.state, d.err = now, acked, refusal
	if refusal != "" {
		d.state = refused
		w.sub.engine.metrics.refused.WithLabelValues(w.label()).Inc()
	} else if !d.changed.IsZero() {
		w.sub.engine.metrics.push.WithLabelValues(w.label()).Observe(now.Sub(d.changed).Seconds())
	}
	names := make([]string, 0, len(d.resources)+len(d.removed))
	for _, r := range d.resources {
		names = append(names, r.Name)
		w.settleName(r.Name, r, d)
	}
	for _, name := range d.removed {
		names = append(names, name)
		w.settleName(name, nil, d)
	}
	if d.state == acked {
		d.previous = nil
	}
	d.resources, d.removed = nil, nil
	return names
}

func (w *watch) settleName(name string, r *Resource, d *delivery) {
	h, ok := w.held[name]
	if !ok || h.in == d || d.state != acked || h.in.state == acked {
		return
	}
	// A later response is on its way: what it would replace is now this.
	if r == nil {
		delete(h.in.previous, name)
		return
	}
	h.in.keep(name, r.Version)
}

// forget drops names that were told to be gone, once that is answered.
func (w *watch) forget(names []string) {
	for _, name := range names {
		if h, ok := w.held[name]; ok && h.sent == nil && h.in.state != pending {
			if _, named := w.named[name]; !named {
				delete(w.held, name)
			}
		}
	}
}

// status is the ledger's line for a name that is held.
func (w *watch) status(name string) Status {
	h := w.held[name]
	s := Status{Subscriber: w.sub.id, Type: w.typ, Name: name, Acked: w.acked(name), Since: h.in.since}
	if h.sent != nil {
		s.Sent = h.sent.Version
	}
	if h.in.state == refused {
		s.Error = h.in.err
	}
	return s
}

// Filter selects lines of the ledger; empty fields select all.
type Filter struct {
	Subscriber string
	Type       string
	Name       string
	// Behind selects only what is not acknowledged: sent and unanswered, or
	// refused.
	Behind bool
}

// Statuses returns the ledger's lines of all attached subscribers, sorted by
// subscriber, type and name.
func (e *Engine) Statuses(f Filter) []Status {
	var out []Status
	e.mu.RLock()
	for s := range e.subscribers {
		if f.Subscriber != "" && f.Subscriber != s.id {
			continue
		}
		s.mu.Lock()
		for _, w := range s.order {
			if f.Type == "" || f.Type == w.typ {
				out = w.statuses(out, f)
			}
		}
		s.mu.Unlock()
	}
	e.mu.RUnlock()
	slices.SortStableFunc(out, func(a, b Status) int {
		if c := strings.Compare(a.Subscriber, b.Subscriber); c != 0 {
			return c
		}
		if c := strings.Compare(a.Type, b.Type); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

func (w *watch) statuses(out []Status, f Filter) []Status {
	if f.Name != "" {
		if h, ok := w.held[f.Name]; ok && (!f.Behind || h.in.state != acked) {
			out = append(out, w.status(f.Name))
		}
		return out
	}
	for name, h := range w.held {
		if !f.Behind || h.in.state != acked {
			out = append(out, w.status(name))
		}
	}
	return out
}
