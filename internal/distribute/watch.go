package distribute

import (
	"slices"
	"strings"
	"time"
)

// watch is one subscriber's view of one type.
type watch struct {
	sub    *Subscriber
	typ    string
	rank   int
	tables []*table // one per scope of the subscriber, in its order

	wildcard bool
	legacy   bool // wildcard by a first request without names, nothing named since
	named    map[string]struct{}
	held     map[string]held // what the subscriber was told, by name

	dirty   map[string]mark // names to look at again
	whole   bool            // look at everything again
	answer  bool            // answer even if nothing is new
	first   bool            // the first answer is not complete yet
	initial int             // names in dirty that belong to the first answer
	changed time.Time       // when the oldest change in dirty happened; zero: none did while attached

	flight []*delivery // not answered yet, oldest first
}

// mark says why a name is dirty.
type mark uint8

const (
	again   mark = 1 << iota // send even if the subscriber has this version
	initial                  // part of the first answer
)

// held is two words per name and subscriber, so that 50 KB hold a thousand.
type held struct {
	sent *Resource // nil: told that it does not exist
	in   *delivery // the response that told it
}

// mark makes the name dirty. Under Engine.mu.Lock, or RLock with sub.mu.
func (w *watch) mark(name string, m mark) {
	if w.whole && m == 0 {
		return
	}
	if w.dirty == nil {
		w.dirty = make(map[string]mark)
	}
	old := w.dirty[name]
	if m&^old&initial != 0 {
		w.initial++
	}
	w.dirty[name] = old | m
}

func (w *watch) unmark(name string) mark {
	m := w.dirty[name]
	if m&initial != 0 {
		w.initial--
	}
	delete(w.dirty, name)
	return m
}

// visible returns the resource the subscriber sees under the name, or nil.
func (w *watch) visible(name string) *Resource {
	if a := w.sub.authorise; a != nil && !a(w.typ, name) {
		return nil
	}
	for _, tb := range w.tables {
		if r := tb.resources[name]; r != nil {
			return r
		}
	}
	return nil
}

// expand turns "everything" into names.
func (w *watch) expand() {
	if !w.whole {
		return
	}
	w.whole = false
	var m mark
	if w.first {
		m = initial
	}
	if w.wildcard {
		for _, tb := range w.tables {
			for name := range tb.resources {
				w.mark(name, m)
			}
		}
		for name := range w.held {
			w.mark(name, m)
		}
	}
	for name := range w.named {
		w.mark(name, m)
	}
}

// next assembles a response from what is dirty, or returns nil. Engine.mu is
// read-locked and sub.mu locked.
func (w *watch) next(now time.Time) *Response {
	if len(w.flight) >= w.sub.window || !w.answer && !w.whole && len(w.dirty) == 0 {
		return nil
	}
	w.expand()
	d := &delivery{state: pending, since: now, changed: w.changed}
	size, forced := 0, w.answer
	w.answer = false
	many := len(w.dirty) > 64
	for name := range w.dirty {
		size += w.consider(name, w.unmark(name), d)
		if n := len(d.resources) + len(d.removed); n > 0 && (w.sub.one || w.sub.maxBytes > 0 && size >= w.sub.maxBytes) {
			break
		}
	}
	if len(w.dirty) == 0 {
		w.changed = time.Time{}
		if many {
			w.dirty = nil // a map does not shrink
		}
	}
	if w.first && w.initial == 0 {
		w.first = false
		w.sub.firstDone()
	}
	if len(d.resources)+len(d.removed) == 0 && !forced {
		return nil
	}
	w.sub.nonce++
	d.nonce = w.sub.nonce
	w.flight = append(w.flight, d)
	slices.SortFunc(d.resources, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.removed)
	r := &Response{Type: w.typ, Nonce: formatNonce(d.nonce), Resources: d.resources, Removed: d.removed}
	for _, name := range d.removed {
		if _, ok := w.named[name]; ok {
			r.Missing = append(r.Missing, name)
		}
	}
	return r
}

// consider puts the name into the delivery if the subscriber has to be told,
// and returns the bytes that adds.
func (w *watch) consider(name string, m mark, d *delivery) int {
	_, named := w.named[name]
	if !named && !w.wildcard {
		delete(w.held, name)
		return 0
	}
	h, known := w.held[name]
	r := w.visible(name)
	switch {
	case r != nil && known && h.sent != nil && h.sent.Version == r.Version && m&again == 0:
		if h.sent != r { // let go of the old bytes
			h.sent = r
			w.held[name] = h
		}
		return 0
	case r == nil && known && h.sent == nil && m&again == 0:
		return 0
	case r == nil && !known && !named && m&again == 0:
		return 0
	}
	if version := w.acked(name); version != "" {
		d.keep(name, version)
	}
	w.held[name] = held{sent: r, in: d}
	if r == nil {
		d.removed = append(d.removed, name)
		return len(name)
	}
	d.resources = append(d.resources, r)
	return len(r.Name) + len(r.Version) + len(r.Body)
}
