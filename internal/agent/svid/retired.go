package svid

import (
	"strings"
	"time"

	"github.com/legation-io/legation/internal/fault"
)

// Each session has a key and a certificate of its own. While no control plane
// answers, a program that is started again could get none; so the certificate
// of the last session of each entry that ended is kept, and a new one goes on
// with it until its own can be signed.

// retired is what an instance held when it ended.
type retired struct {
	kind string // of the instance
	spec string
	svid *SVID
}

// kindOf is the part of an instance that says what it is an instance of.
func kindOf(i Instance) string {
	kind, _, _ := strings.Cut(string(i), "/")
	return kind
}

// Retire is Forget for an instance whose like may begin again: what it held
// is kept for the next of its kind and entry, one each.
func (m *Manager) Retire(instance Instance) {
	wall := m.p.Clock.Now()
	m.mu.Lock()
	for _, s := range m.slots {
		_, known := m.retired[s.key.entry]
		if s.key.instance == instance && len(s.subs) == 0 && s.usable(wall) && (known || len(m.retired) < m.p.CacheSize) {
			m.retired[s.key.entry] = retired{kindOf(instance), s.spec, s.svid}
		}
	}
	m.mu.Unlock()
	m.Forget(instance)
}

// adoptLocked gives a slot that has nothing, because nothing can be signed
// now, what the last of its kind left. Its own is asked for again at once.
func (m *Manager) adoptLocked(s *slot, why error, wall time.Time) {
	r, ok := m.retired[s.key.entry]
	if !ok || !fault.Is(why, fault.Unavailable) || s.svid != nil || s.entry == nil || len(s.subs) == 0 || kindOf(s.key.instance) != r.kind || specOf(s.entry, s.ips) != r.spec {
		return
	}
	if _, revoked := m.revoked[r.svid.Serial]; revoked || s.entry.Blocked || !wall.Before(r.svid.NotAfter) {
		return
	}
	delete(m.retired, s.key.entry)
	v := *r.svid
	v.Entry, v.RenewAt = s.entry, wall
	s.put(&v, r.spec, wall)
	signal(m.dirty)
	m.log.Info("nothing can be signed now; a new instance goes on with the certificate of one that ended", "entry", s.key.entry, "instance", string(s.key.instance), "serial", v.Serial)
}

// pruneRetiredLocked drops what nobody can use any more.
func (m *Manager) pruneRetiredLocked(wall time.Time) {
	for entry, r := range m.retired {
		if _, revoked := m.revoked[r.svid.Serial]; revoked || !wall.Before(r.svid.NotAfter) {
			delete(m.retired, entry)
		}
	}
}
