package renewal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// recheck bounds how long a timer is trusted: the wall clock may jump, and
	// machines sleep.
	recheck = time.Minute
	// examiners look at certificates at once; they wait for the Store.
	examiners = 4
	// storeRetry is how soon the Store is tried again that did not answer.
	storeRetry = 10 * time.Second
	// loadTime is how long the first look at everything may hold up the first
	// issuance.
	loadTime = 30 * time.Second
	// overrun is how long an issuer may take to notice that it was cancelled.
	overrun = 10 * time.Second
)

// loop is one Run. Its fields belong to one goroutine; what takes time is done
// by others, which it hands one item each.
type loop struct {
	*Scheduler
	items   map[Key]*item
	alarms  alarms
	lines   lines
	examine []*item        // waiting for an examiner, each once
	inHand  int            // with an examiner
	users   map[string]int // issuers to their certificates

	toExamine chan *item
	verdicts  chan verdict
	outcomes  chan outcome
	lists     chan []Ref
	listing   bool
	began     time.Time
	loaded    bool          // issuances may start
	trouble   map[Key]error // for RunOnce

	issuing context.Context
	work    sync.WaitGroup
}

func (s *Scheduler) run(ctx context.Context, once bool) (err error) {
	if !s.runs.CompareAndSwap(false, true) {
		return errors.New("renewal: this Scheduler runs already")
	}
	defer s.runs.Store(false)
	s.once.Store(once)
	if locker, ok := s.cfg.Store.(Locker); ok {
		var lock io.Closer
		if lock, err = locker.Lock(); err != nil {
			return fmt.Errorf("renewal: %w", err)
		}
		defer lock.Close()
	}
	if err := s.Reload(); err != nil {
		return fmt.Errorf("renewal: %w", err)
	}
	s.mu.Lock()
	clear(s.claims)
	s.mu.Unlock()
	cancelled, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	l := &loop{
		Scheduler: s, items: make(map[Key]*item), users: make(map[string]int), trouble: make(map[Key]error),
		toExamine: make(chan *item), verdicts: make(chan verdict), outcomes: make(chan outcome, s.cfg.MaxConcurrent), lists: make(chan []Ref),
		issuing: cancelled, began: time.Now(),
	}
	helping, stop := context.WithCancel(ctx)
	for range examiners {
		l.work.Go(func() { l.examiner(helping) })
	}
	l.list(helping)
	if !once {
		l.work.Go(func() { l.watch(helping) })
	}
	l.serve(helping)
	stop()
	l.work.Wait()
	err = l.drain(cancel)
	if once {
		err = errors.Join(err, ctx.Err(), l.troubles())
	}
	return err
}

func (l *loop) serve(ctx context.Context) {
	sweep := time.NewTicker(l.cfg.Sweep)
	defer sweep.Stop()
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	for {
		l.start()
		var toExamine chan *item
		var next *item
		if len(l.examine) > 0 {
			toExamine, next = l.toExamine, l.examine[0]
		}
		if l.once.Load() && l.settled() {
			return
		}
		timer.Reset(l.untilNext())
		select {
		case <-ctx.Done():
			return
		case toExamine <- next:
			l.examine[0] = nil
			l.examine = l.examine[1:]
			l.inHand++
		case v := <-l.verdicts:
			l.inHand--
			l.judged(v)
		case o := <-l.outcomes:
			l.done(o)
		case <-l.wake:
			l.woken()
		case refs := <-l.lists:
			l.swept(refs)
		case <-sweep.C:
			l.list(ctx)
		case <-timer.C:
			l.ring()
		}
	}
}

// settled reports whether nothing is left to do now.
func (l *loop) settled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) == 0 && !l.listing && len(l.examine) == 0 && l.inHand == 0 && l.lines.waiting == 0 && l.lines.running == 0
}

func (l *loop) troubles() error {
	var list []error
	for _, err := range l.trouble {
		list = append(list, err)
	}
	slices.SortFunc(list, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(list...)
}

// untilNext is how long to sleep.
func (l *loop) untilNext() time.Duration {
	if len(l.alarms) == 0 {
		return recheck
	}
	return max(0, min(recheck, l.alarms[0].at.Sub(l.cfg.Now())))
}

// ring looks at what the wall clock has come to.
func (l *loop) ring() {
	now := l.cfg.Now()
	for len(l.alarms) > 0 && !l.alarms[0].at.After(now) {
		l.changed(l.alarms[0].key)
	}
}

// woken takes over what others reported.
func (l *loop) woken() {
	l.mu.Lock()
	pending, all := l.pending, l.all
	l.pending, l.all = make(map[Key]bool), false
	l.mu.Unlock()
	for k := range pending {
		l.changed(k)
	}
	if all {
		for k := range l.items {
			l.changed(k)
		}
	}
}

// changed has an item examined, as soon as nobody is busy with it.
func (l *loop) changed(k Key) {
	it := l.items[k]
	if it == nil {
		it = &item{key: k, alarm: -1, place: -1}
		l.items[k] = it
	}
	switch it.state {
	case examining, running:
		it.dirty = true
		return
	case ready:
		l.lines.remove(it)
	}
	l.alarms.set(it, time.Time{})
	it.state = examining
	l.examine = append(l.examine, it)
}

// list reads the Store, by another goroutine, one at a time.
func (l *loop) list(ctx context.Context) {
	if l.listing {
		return
	}
	l.listing = true
	l.work.Go(func() {
		ask, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		refs, err := l.cfg.Store.List(ask)
		if err != nil {
			if ctx.Err() == nil {
				l.log.Error("cannot list the certificates; trying again at the next sweep", "error", err)
			}
			refs = nil
		} else if refs == nil {
			refs = []Ref{}
		}
		select {
		case l.lists <- refs:
		case <-ctx.Done():
		}
	})
}

// swept compares a list with what is known; nil is none.
func (l *loop) swept(refs []Ref) {
	l.listing = false
	if refs == nil {
		if l.once.Load() {
			l.trouble[Key{}] = errors.New("the Store could not be listed; the log says why")
		}
		return
	}
	there := make(map[Key]bool, len(refs))
	for _, r := range refs {
		there[r.Key] = true
		if it := l.items[r.Key]; it == nil || it.version != r.Version {
			l.changed(r.Key)
			l.items[r.Key].version = r.Version
		}
	}
	for k := range l.items {
		if !there[k] {
			l.changed(k)
		}
	}
	l.lines.forget(l.users)
	l.metrics.swept.Set(float64(l.cfg.Now().Unix()))
}

// judged takes an item back from an examiner.
func (l *loop) judged(v verdict) {
	it := v.it
	it.state = idle
	delete(l.trouble, it.key)
	switch {
	case it.dirty:
		it.dirty = false
		l.employ(it, v.issuer)
		l.changed(it.key)
		return
	case v.err != nil:
		l.log.Error("cannot look at a certificate; trying again", "certificate", it.key.String(), "error", v.err)
		l.trouble[it.key] = v.err
		if !l.once.Load() {
			l.alarms.set(it, l.cfg.Now().Add(storeRetry))
		}
		return
	case v.gone:
		l.employ(it, "")
		delete(l.items, it.key)
		return
	}
	if v.trouble != nil {
		l.trouble[it.key] = v.trouble
	}
	l.employ(it, v.issuer)
	if v.due {
		it.state, it.urgency = ready, v.urgency
		l.lines.add(it)
		return
	}
	l.alarms.set(it, v.next)
}

// employ counts whose certificate it is.
func (l *loop) employ(it *item, issuer string) {
	if it.issuer == issuer {
		return
	}
	if l.users[it.issuer]--; l.users[it.issuer] <= 0 {
		delete(l.users, it.issuer)
	}
	if it.issuer = issuer; issuer != "" {
		l.users[issuer]++
	}
}

// start runs as many issuances as there are places. The first waits until
// everything has been looked at once, so that it is known what is urgent and
// whose turn it is, though not for long.
func (l *loop) start() {
	if !l.loaded {
		if l.loaded = !l.listing && len(l.examine) == 0 && l.inHand == 0 || time.Since(l.began) > loadTime; !l.loaded {
			return
		}
	}
	each := l.cfg.PerIssuer
	if each <= 0 {
		each = l.cfg.MaxConcurrent
		if len(l.users) > 1 {
			each = max(1, each-1)
		}
	}
	for it := l.lines.take(l.cfg.MaxConcurrent, each); it != nil; it = l.lines.take(l.cfg.MaxConcurrent, each) {
		it.state = running
		go func() { l.outcomes <- outcome{it, l.issue(l.issuing, it)} }() // drain waits for each
	}
	l.metrics.depth.Set(float64(l.lines.waiting))
	l.metrics.running.Set(float64(l.lines.running))
}

// done takes an item back from an issuance.
func (l *loop) done(o outcome) {
	l.lines.done(o.it.issuer)
	o.it.state, o.it.dirty = idle, false
	if o.err != nil {
		l.log.Error("an issuance stopped on the way; trying again", "certificate", o.it.key.String(), "error", o.err)
		l.trouble[o.it.key] = o.err
		if !l.once.Load() {
			l.alarms.set(o.it, l.cfg.Now().Add(storeRetry))
		}
		return
	}
	l.changed(o.it.key)
}

// drain waits for what runs, and cancels it when that takes too long.
func (l *loop) drain(cancel context.CancelFunc) error {
	if l.lines.running > 0 {
		l.log.Info("draining: no issuance starts any more", "running", l.lines.running, "at_most", l.cfg.Drain)
	}
	deadline := time.NewTimer(l.cfg.Drain)
	defer deadline.Stop()
	late := (<-chan time.Time)(nil)
	for l.lines.running > 0 {
		select {
		case o := <-l.outcomes:
			l.lines.done(o.it.issuer)
			if o.err != nil {
				l.log.Error("an issuance stopped on the way", "certificate", o.it.key.String(), "error", o.err)
			}
		case <-deadline.C:
			cancel()
			timer := time.NewTimer(overrun)
			defer timer.Stop()
			late = timer.C
		case <-late:
			return fmt.Errorf("renewal: %d issuances go on %s after they were cancelled; their Issuer does not heed its context", l.lines.running, overrun)
		}
	}
	l.metrics.depth.Set(0)
	l.metrics.running.Set(0)
	return nil
}

// examiner looks at one item after the other.
func (l *loop) examiner(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case it := <-l.toExamine:
			ask, cancel := context.WithTimeout(ctx, storeTimeout)
			v := l.Scheduler.examine(ask, it)
			cancel()
			select {
			case l.verdicts <- v:
			case <-ctx.Done():
				return
			}
		}
	}
}

// watch follows the Store and begins again when its watch breaks.
func (l *loop) watch(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, recheck) {
		began := time.Now()
		err := l.cfg.Store.Watch(ctx, l.look)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > recheck {
			wait = time.Second
		}
		l.log.Warn("the watch of certificates ended; watching again", "error", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
