// Package holder answers "what does this process present and believe, as far
// as its Workload API has told": it is the state behind the Sources of
// sdk/workloadapi and sdk/light, which bring it what they read. It starts no
// goroutine, opens nothing and knows no protocol.
package holder

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/legation-io/legation/sdk/chaincheck"
	"github.com/legation-io/legation/sdk/identity"
)

// State is how a subscription to a Workload API stands.
type State string

// The states. They are documented where users see them.
const (
	Connecting  State = "connecting"
	Current     State = "current"
	NoIdentity  State = "no_identity"
	Unavailable State = "unavailable"
	Malformed   State = "malformed"
)

// States are all of them.
var States = []State{Connecting, Current, NoIdentity, Unavailable, Malformed}

// Answer is one whole answer of a Workload API.
type Answer struct {
	// SVIDs, the default first. Nothing in them is shared with a buffer that
	// is wiped.
	SVIDs []*x509svid.SVID
	Roots chaincheck.Roots
	CRLs  [][]byte
}

// Params is what a Holder needs.
type Params struct {
	// Name says in errors where answers come from.
	Name string
	// ID is the identity that is wanted; zero takes what Pick returns.
	ID spiffeid.ID
	// Pick chooses among several; nil takes the first.
	Pick func([]*x509svid.SVID) *x509svid.SVID
	// AwaitDenials is how long the first Snapshot waits for what was revoked.
	AwaitDenials time.Duration
	Log          *slog.Logger
	Now          func() time.Time
}

// Status says how things stand.
type Status struct {
	State State
	// Since is when State began.
	Since time.Time
	// Err says why in all states but Connecting and Current.
	Err error
	// ID and NotAfter are of the certificate that is served; zero without one.
	ID       spiffeid.ID
	NotAfter time.Time
	// Answered is when the last good answer came; zero before the first.
	Answered time.Time
	// Answers and Malformed count good answers and those that were dropped,
	// with parts of them that were left out.
	Answers, Malformed uint64
	// Denials is what the deny set holds; -1 while the socket offers none.
	Denials int
	// Clock is empty, or says why this machine's clock seems to be wrong.
	Clock string
}

// maxSkew is how much earlier than its notBefore a certificate may be seen
// without a word: certificates are back-dated by that much.
const maxSkew = 5 * time.Minute

// recheck bounds how long a timer is trusted: wall time may jump.
const recheck = 30 * time.Second

// Holder is a Source.
type Holder struct {
	p      Params
	memory identity.Memory

	answer sync.Mutex // one at a time, taken before mu; guards what follows
	crls   [][]byte   // of the last answer
	good   [][]byte   // of the last answer in which every list could be read
	lists  *chaincheck.CRLSet

	mu     sync.Mutex // guards what follows; not held while Pick or Log is called
	said   []func()   // logged when mu is free
	status Status
	lost   time.Time // since when there is no good answer; zero while there is
	trust  *chaincheck.Trust
	cert   *tls.Certificate
	id     spiffeid.ID
	end    time.Time // of cert, with the monotonic reading
	ended  bool      // said so
	gate   time.Time // the first Snapshot waits until then
	gated  bool
}

// New returns a Holder that has nothing yet.
func New(p Params) *Holder {
	h := &Holder{p: p, gated: p.AwaitDenials > 0}
	h.status = Status{State: Connecting, Since: p.Now(), Denials: -1}
	h.lost = h.status.Since
	h.memory.Fail(&identity.NotReady{Source: p.Name})
	return h
}

// Current implements identity.Source.
func (h *Holder) Current() (*identity.Snapshot, <-chan struct{}, error) { return h.memory.Current() }

// Status returns how things stand.
func (h *Holder) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status
}

// unlock logs what was said under the lock: a handler of logs may be slow, or
// ask us something.
func (h *Holder) unlock() {
	said := h.said
	h.said = nil
	h.mu.Unlock()
	for _, say := range said {
		say()
	}
}

func (h *Holder) sayLocked(level slog.Level, text string, attrs ...any) {
	h.said = append(h.said, func() { h.p.Log.Log(context.Background(), level, text, attrs...) })
}

// Updated takes a new answer in.
func (h *Holder) Updated(a *Answer) {
	h.answer.Lock()
	defer h.answer.Unlock()
	crls, dropped := h.readLists(a.CRLs)
	picked, err := h.pick(a.SVIDs)
	h.mu.Lock()
	defer h.unlock()
	now := h.p.Now()
	h.status.Answers++
	h.status.Answered = now
	if dropped != nil {
		h.droppedLocked("crl", dropped)
	}
	h.believeLocked(a.Roots, crls)
	if err != nil {
		// The answer still says whom to believe. What was ours is kept until
		// it ends, as with an agent that is away.
		h.becomeLocked(NoIdentity, err)
		h.publishLocked()
		return
	}
	h.presentLocked(picked, now)
	h.becomeLocked(Current, nil)
	if h.gated && h.gate.IsZero() {
		h.gate = now.Add(h.p.AwaitDenials)
	}
	h.publishLocked()
}

func (h *Holder) pick(all []*x509svid.SVID) (*x509svid.SVID, error) {
	if len(all) == 0 {
		return nil, errors.New("the answer has no SVID")
	}
	if h.p.ID.IsZero() && h.p.Pick == nil {
		return all[0], nil
	}
	names := make([]string, len(all))
	for n, v := range all {
		names[n] = v.ID.String()
	}
	have := strings.Join(names, ", ")
	if !h.p.ID.IsZero() {
		for _, v := range all {
			if v.ID == h.p.ID {
				return v, nil
			}
		}
		return nil, fmt.Errorf("this process is configured to be %s, and %s gives it %s", h.p.ID, h.p.Name, have)
	}
	if v := h.p.Pick(all); v != nil {
		return v, nil
	}
	return nil, fmt.Errorf("the program's Pick wants none of the identities that %s gives: %s", h.p.Name, have)
}

// presentLocked takes a certificate. When it ends is counted from now on by
// the monotonic clock, so that a wall clock that jumps ends nothing.
func (h *Holder) presentLocked(v *x509svid.SVID, now time.Time) {
	leaf := v.Certificates[0]
	switch {
	case h.cert == nil || !h.cert.Leaf.Equal(leaf):
		h.cert, h.id = &tls.Certificate{PrivateKey: v.PrivateKey, Leaf: leaf}, v.ID
		for _, c := range v.Certificates {
			h.cert.Certificate = append(h.cert.Certificate, c.Raw)
		}
		left := leaf.NotAfter.Sub(now)
		if left <= 0 { // the agent would not give what has ended: our clock is wrong
			left = leaf.NotAfter.Sub(leaf.NotBefore)
		}
		h.end, h.ended = now.Add(left), false
	case h.ended:
		return // told once more, it is not valid again
	}
	h.status.ID, h.status.NotAfter = h.id, leaf.NotAfter
	h.judgeClockLocked(now)
}

// judgeClockLocked warns, once for each reason, of a clock that cannot be
// right if the certificate is.
func (h *Holder) judgeClockLocked(now time.Time) {
	why := ""
	switch leaf := h.cert.Leaf; {
	case now.Before(h.end) && now.Round(0).After(leaf.NotAfter):
		why = "ahead"
	case now.Round(0).Before(leaf.NotBefore.Add(-maxSkew)):
		why = "behind"
	}
	if why == h.status.Clock {
		return
	}
	h.status.Clock = why
	if why == "" {
		h.sayLocked(slog.LevelInfo, "the clock agrees with the certificate again", "spiffe_id", h.id.String(), "now", now.UTC())
		return
	}
	h.sayLocked(slog.LevelWarn, "this machine's clock seems to be "+why+": the certificate that it was just given is not valid at this time; it is presented all the same. Set the clock (NTP)",
		"spiffe_id", h.id.String(), "not_before", h.cert.Leaf.NotBefore.UTC(), "not_after", h.cert.Leaf.NotAfter.UTC(), "now", now.UTC())
}

// publishLocked makes what is held the Snapshot.
func (h *Holder) publishLocked() {
	if h.cert == nil || h.ended || h.gated {
		return
	}
	if old, _, err := h.memory.Current(); err == nil && old.Certificate == h.cert && old.Trust == h.trust {
		return
	}
	h.memory.Set(&identity.Snapshot{ID: h.id, Certificate: h.cert, Trust: h.trust})
}

// Became takes a new state in; Current is Updated's to say.
func (h *Holder) Became(s State, err error) {
	h.mu.Lock()
	defer h.unlock()
	if s != Current {
		h.becomeLocked(s, err)
	}
}

// Dropped counts an answer, or a part of one, that made no sense and was left
// out, and says so.
func (h *Holder) Dropped(what string, err error) {
	h.mu.Lock()
	defer h.unlock()
	h.droppedLocked(what, err)
}

func (h *Holder) droppedLocked(what string, err error) {
	h.status.Malformed++
	h.sayLocked(slog.LevelError, "the Workload API sent what makes no sense; the last good answer stays", "workload_api", h.p.Name, "what", what, "error", err)
}

// becomeLocked says a change of state once.
func (h *Holder) becomeLocked(s State, err error) {
	h.status.Err = err
	changed := h.status.State != s
	if changed {
		was := h.status.State
		h.status.State, h.status.Since = s, h.p.Now()
		switch {
		case s == Current:
			h.sayLocked(slog.LevelInfo, "the Workload API has our identity", "workload_api", h.p.Name, "spiffe_id", h.id.String(), "not_after", h.status.NotAfter.UTC(), "was", was)
		case s != Connecting:
			h.sayLocked(slog.LevelWarn, "the Workload API has nothing for us", "workload_api", h.p.Name, "state", s, "error", err, "still_served", h.servedLocked())
		}
	}
	switch {
	case s == Current:
		h.lost = time.Time{}
	case h.lost.IsZero():
		h.lost = h.p.Now()
	}
	if changed && h.cert == nil && s != Current {
		h.memory.Fail(&identity.NotReady{Source: h.p.Name, Err: err})
	}
}

func (h *Holder) servedLocked() string {
	if h.cert == nil || h.ended {
		return "nothing"
	}
	return fmt.Sprintf("%s until %s", h.id, h.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// Check ends what has ended, and says when to call it again.
func (h *Holder) Check() time.Duration {
	h.mu.Lock()
	defer h.unlock()
	now := h.p.Now()
	next := recheck
	if h.gated && !h.gate.IsZero() {
		if left := h.gate.Sub(now); left > 0 {
			next = min(next, left)
		} else {
			h.gated = false
			h.publishLocked()
		}
	}
	if h.cert == nil || h.ended {
		return next
	}
	if left := h.end.Sub(now); left > 0 {
		h.judgeClockLocked(now)
		return min(next, left)
	}
	h.ended = true
	since := h.lost
	if since.IsZero() {
		since = h.status.Answered
	}
	err := &identity.Ended{Source: h.p.Name, ID: h.id, NotAfter: h.cert.Leaf.NotAfter, Since: since, Err: h.status.Err}
	h.sayLocked(slog.LevelError, "this process has no valid certificate any more", "workload_api", h.p.Name, "state", h.status.State, "error", err)
	h.status.ID, h.status.NotAfter = spiffeid.ID{}, time.Time{}
	h.memory.Fail(err)
	return next
}
