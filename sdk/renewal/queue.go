package renewal

import (
	"container/heap"
	"time"
)

// state is where an item is; it is in one place at a time.
type state uint8

const (
	idle      state = iota // in the alarm, or nothing to do
	examining              // waiting for or with an examiner
	ready                  // due, waiting for a place
	running                // being issued
)

// item is one certificate as the loop knows it.
type item struct {
	key   Key
	state state
	dirty bool // it changed while somebody was busy with it

	at    time.Time // when to look again; zero: at the next change
	alarm int       // index in alarms, -1

	version string // Ref.Version when last examined
	issuer  string
	urgency time.Time // the earlier the sooner
	place   int       // index in its issuer's queue, -1

	memo memo // belongs to whoever is busy with it
}

// alarms is a heap of items by at.
type alarms []*item

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].alarm, a[j].alarm = i, j
}
func (a *alarms) Push(x any) {
	x.(*item).alarm = len(*a)
	*a = append(*a, x.(*item))
}
func (a *alarms) Pop() any {
	last := len(*a) - 1
	it := (*a)[last]
	(*a)[last] = nil
	*a, it.alarm = (*a)[:last], -1
	return it
}

func (a *alarms) set(it *item, at time.Time) {
	if it.alarm >= 0 {
		heap.Remove(a, it.alarm)
	}
	if it.at = at; !at.IsZero() {
		heap.Push(a, it)
	}
}

// line is the queue of one issuer, the most urgent first.
type line struct {
	issuer  string
	waiting urgent
	running int
}

type urgent []*item

func (u urgent) Len() int { return len(u) }
func (u urgent) Less(i, j int) bool {
	if !u[i].urgency.Equal(u[j].urgency) {
		return u[i].urgency.Before(u[j].urgency)
	}
	return u[i].key.String() < u[j].key.String()
}
func (u urgent) Swap(i, j int) {
	u[i], u[j] = u[j], u[i]
	u[i].place, u[j].place = i, j
}
func (u *urgent) Push(x any) {
	x.(*item).place = len(*u)
	*u = append(*u, x.(*item))
}
func (u *urgent) Pop() any {
	last := len(*u) - 1
	it := (*u)[last]
	(*u)[last] = nil
	*u, it.place = (*u)[:last], -1
	return it
}

// lines takes turns among issuers, so that many certificates of one, or one
// that hangs, do not keep the others waiting.
type lines struct {
	ring    []*line
	by      map[string]*line
	next    int
	waiting int
	running int
}

func (l *lines) line(issuer string) *line {
	q := l.by[issuer]
	if q == nil {
		if l.by == nil {
			l.by = make(map[string]*line)
		}
		q = &line{issuer: issuer}
		l.by[issuer] = q
		l.ring = append(l.ring, q)
	}
	return q
}

func (l *lines) add(it *item) {
	heap.Push(&l.line(it.issuer).waiting, it)
	l.waiting++
}

func (l *lines) remove(it *item) {
	if it.place >= 0 {
		heap.Remove(&l.by[it.issuer].waiting, it.place)
		l.waiting--
	}
}

// take returns the next item to run, or nil. No issuer has more than each at
// once.
func (l *lines) take(most, each int) *item {
	if l.running >= most || l.waiting == 0 {
		return nil
	}
	for i := range l.ring {
		q := l.ring[(l.next+i)%len(l.ring)]
		if len(q.waiting) == 0 || q.running >= each {
			continue
		}
		l.next = (l.next + i + 1) % len(l.ring)
		q.running++
		l.running++
		l.waiting--
		return heap.Pop(&q.waiting).(*item)
	}
	return nil
}

// done gives a place back.
func (l *lines) done(issuer string) {
	l.by[issuer].running--
	l.running--
}

// forget drops lines in which nobody stands.
func (l *lines) forget(used map[string]int) {
	kept := l.ring[:0]
	for _, q := range l.ring {
		if len(q.waiting) > 0 || q.running > 0 || used[q.issuer] > 0 {
			kept = append(kept, q)
		} else {
			delete(l.by, q.issuer)
		}
	}
	clear(l.ring[len(kept):])
	l.ring, l.next = kept, 0
}
