package svid

import (
	"container/list"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
	"google.golang.org/protobuf/proto"
)

type slotKey struct {
	entry    string
	instance Instance
}

// slot is the place of one SVID: (entry, instance). All fields are guarded by
// Manager.mu, except key.
type slot struct {
	key   slotKey
	entry *nodev1.Entry // of the latest View; nil: not (yet, or any more) in one
	svid  *SVID         // nil until signed
	spec  string        // what svid was signed for
	// addresses reads those of the instance; nil: they are the machine's. ips
	// is what was read last; nil: not yet.
	addresses func() ([]netip.Addr, error)
	ips       []netip.Addr
	// supersedes are certificates that svid replaces, to be revoked when nobody
	// in waiting presents them any more.
	supersedes []superseded
	waiting    map[*Subscription]struct{}
	// revoked: svid's serial is; it is not handed out any more.
	revoked   bool
	wasUsable bool
	forget    bool // drop when unused

	inflight bool
	fails    int
	err      error     // why the last attempt failed
	retryAt  time.Time // by the monotonic clock

	// renewal is RenewAt by the monotonic clock, should wall time go back.
	renewal  time.Time
	signedAt time.Time // wall time
	usedAt   time.Time // wall time, of the last subscription's begin or end

	subs map[*Subscription]struct{}
	elem *list.Element // in Manager.idle when subs is empty
}

// setEntry reports whether anything that is served or signed changed.
func (s *slot) setEntry(entry *nodev1.Entry) bool {
	if s.entry == entry {
		return false
	}
	same := s.entry != nil && proto.Equal(s.entry, entry)
	s.entry = entry
	if same {
		return false
	}
	if s.svid != nil && s.svid.Entry != entry {
		renamed := *s.svid
		renamed.Entry = entry
		s.svid = &renamed
	}
	return true
}

// usable: may be handed out at this wall time.
func (s *slot) usable(wall time.Time) bool {
	return s.svid != nil && !s.revoked && s.entry != nil && !s.entry.Blocked &&
		s.entry.SpiffeId == s.svid.ID.String() && wall.Before(s.svid.NotAfter)
}

// undecided: not usable, and it is not known yet whether it will be.
func (s *slot) undecided(wall time.Time) bool {
	return !s.usable(wall) && s.err == nil && s.entry != nil && !s.entry.Blocked
}

// dueIn is how long until the slot is to be signed; 0 or less is now.
func (s *slot) dueIn(wall, now time.Time) time.Duration {
	const never = recheck
	if s.inflight || s.entry == nil || s.entry.Blocked {
		return never
	}
	wait := s.retryAt.Sub(now)
	used := len(s.subs) > 0
	if s.entry.IncludeOwnIp && s.ips == nil {
		return never // until the addresses were read, or somebody uses it
	}
	if s.svid == nil || s.revoked || s.spec != specOf(s.entry, s.ips) {
		if !used && s.svid == nil {
			return never
		}
		return wait
	}
	// One that nobody has used during its life is left to expire.
	if !used && s.usedAt.Before(s.signedAt) {
		return never
	}
	return max(wait, min(s.svid.RenewAt.Sub(wall), s.renewal.Sub(now)))
}

// specOf is everything of an entry that is in the certificate.
func specOf(e *nodev1.Entry, ips []netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %q", e.SpiffeId, e.X509TtlSeconds, e.DnsNames)
	if e.IncludeOwnIp {
		fmt.Fprintf(&b, " %v", ips)
	}
	return b.String()
}

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	// A refusal will not change by itself; a changed entry or a new link asks
	// again at once.
	lastRefused = 5 * time.Minute
)

// failed sets when to try again: doubling, jittered by half.
func (s *slot) failed(err error) {
	limit := lastRetry
	switch fault.KindOf(err) {
	case fault.Denied, fault.Invalid, fault.NotFound:
		limit = lastRefused
	}
	wait := min(firstRetry<<min(s.fails, 20), limit)
	wait = wait/2 + rand.N(wait)
	s.fails++
	s.err = err
	s.retryAt = time.Now().Add(wait)
}

func (s *slot) retryNow() {
	s.fails = 0
	s.err = nil
	s.retryAt = time.Time{}
}

// put stores a newly signed SVID.
func (s *slot) put(v *SVID, spec string, wall time.Time) {
	s.svid, s.spec = v, spec
	s.revoked = false
	s.retryNow()
	s.signedAt = wall
	s.renewal = time.Now().Add(v.RenewAt.Sub(wall))
	s.wasUsable = s.usable(wall)
	s.wakeAll()
}

// renewAt is half of what is left of the life, give or take a tenth of it.
func renewAt(wall, notAfter time.Time) time.Time {
	half := notAfter.Sub(wall) / 2
	return wall.Add(half - half/10 + rand.N(half/5+1)).Round(0)
}

func (s *slot) wakeAll() {
	for sub := range s.subs {
		sub.wake()
	}
}

func sameRevocations(a, b map[string]*nodev1.Revocation) bool {
	if len(a) != len(b) {
		return false
	}
	for id, r := range b {
		if a[id] != r && !slices.Equal(a[id].GetSerials(), r.GetSerials()) {
			return false
		}
	}
	return true
}
