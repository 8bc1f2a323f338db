package svid

import (
	"crypto/x509"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/legation-io/legation/internal/agent/upstream"
)

// A certificate whose addresses are no longer the instance's is replaced at
// once, stays until the new one is served, and is then revoked: the control
// plane is told its serial, again after each reconnect, until a CRL has it.

// Served says that v, of an Update of this subscription, is what its holder
// now presents: acknowledged by its Envoy, or handed to the process.
func (s *Subscription) Served(v *SVID) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, sl := range s.slots {
		if sl.svid != nil && sl.svid.Serial == v.Serial {
			delete(sl.waiting, s)
			m.settleLocked(sl)
		}
	}
}

// supersede notes that v replaces what the slot held, if their addresses
// differ. All who hold the slot now are waited for.
func (s *slot) supersede(v *SVID) {
	if old := s.svid; old != nil && !s.revoked && !slices.Equal(old.addresses, v.addresses) {
		s.supersedes = append(s.supersedes, superseded{old.Serial, old.NotAfter})
	}
	if len(s.supersedes) > 0 {
		s.waiting = maps.Clone(s.subs)
	}
}

// superseded is a certificate on its way into the CRL.
type superseded struct {
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"notAfter"`
}

// settleLocked reports the serials that nobody presents any more.
func (m *Manager) settleLocked(s *slot) {
	if len(s.waiting) > 0 || len(s.supersedes) == 0 {
		return
	}
	var serials []string
	for _, old := range s.supersedes {
		m.superseded[old.Serial] = old.NotAfter
		serials = append(serials, old.Serial)
		m.log.Info("a certificate was replaced because the addresses changed; it is to be revoked", "entry", s.key.entry, "instance", string(s.key.instance), "serial", old.Serial)
	}
	s.supersedes = nil
	signal(m.dirty)
	if m.p.Superseded != nil {
		m.p.Superseded(serials)
	}
}

// Superseded are the serials that were replaced and that no CRL has yet.
func (m *Manager) Superseded() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.superseded))
}

// forgetSupersededLocked drops what a CRL has, or what has expired.
func (m *Manager) forgetSupersededLocked(view *upstream.View, wall time.Time) {
	if len(m.superseded) == 0 {
		return
	}
	before := len(m.superseded)
	maps.DeleteFunc(m.superseded, func(_ string, notAfter time.Time) bool { return !wall.Before(notAfter) })
	for _, crl := range view.CRLs {
		for _, raw := range crl.Lists {
			list, err := x509.ParseRevocationList(raw)
			if err != nil {
				continue // the link verified it; nothing here depends on it
			}
			for _, e := range list.RevokedCertificateEntries {
				delete(m.superseded, serialHex(e.SerialNumber))
			}
		}
	}
	if len(m.superseded) != before {
		signal(m.dirty)
	}
}

// readAddresses looks at the addresses of those instances whose entries
// include them. The lock is not held while the kernel is asked.
func (m *Manager) readAddresses() {
	if !m.index.Get().ownIPs {
		return
	}
	type asked struct {
		slot *slot
		read func() ([]netip.Addr, error)
	}
	var list []asked
	m.mu.Lock()
	for _, s := range m.slots {
		// What nobody uses keeps its addresses: whose they would be is not known.
		if s.entry != nil && s.entry.IncludeOwnIp && len(s.subs) > 0 {
			list = append(list, asked{s, s.addresses})
		}
	}
	m.mu.Unlock()
	if len(list) == 0 {
		return
	}
	machine := ordered(m.p.OwnIPs())
	read := make([][]netip.Addr, len(list))
	for i, a := range list {
		read[i] = machine
		if a.read == nil {
			continue
		}
		ips, err := a.read()
		if err != nil { // it is ending, or not to be seen: what was true stays
			m.log.Debug("the addresses of an instance cannot be read", "instance", string(a.slot.key.instance), "error", err)
			read[i] = nil
			continue
		}
		read[i] = ordered(ips)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, a := range list {
		if read[i] != nil {
			a.slot.ips = read[i]
		} else if a.slot.ips == nil {
			a.slot.ips = []netip.Addr{}
		}
	}
}

// ordered is never nil.
func ordered(ips []netip.Addr) []netip.Addr {
	out := append([]netip.Addr{}, ips...)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// addressesOf are the IP SANs of a certificate.
func addressesOf(leaf *x509.Certificate) ([]netip.Addr, error) {
	ips := make([]netip.Addr, 0, len(leaf.IPAddresses))
	for _, raw := range leaf.IPAddresses {
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, errors.New("an IP SAN of odd length")
		}
		ips = append(ips, ip.Unmap())
	}
	return ordered(ips), nil
}
