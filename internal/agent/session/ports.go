package session

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/fault"
)

// listens are the addresses that this session's Envoy accepts at.
func (sn *session) listens() []netip.AddrPort {
	var list []netip.AddrPort
	add := func(text string) {
		if at, err := netip.ParseAddrPort(text); err == nil {
			list = append(list, at)
		}
	}
	if sn.start.Mode == nodev1.Mode_MODE_CAPTURE {
		add("127.0.0.1:15001")
		add("0.0.0.0:15006")
	}
	for _, in := range sn.start.Inbound {
		add(in.Listen)
	}
	for _, out := range sn.start.Outbound {
		add(out.Listen)
	}
	return list
}

// unbound is an error when Envoy said that it cannot have an address, and nil
// when it said something else.
func (sn *session) unbound(said string) error {
	if !strings.Contains(said, "cannot bind '") {
		return nil
	}
	for _, at := range sn.listens() {
		if strings.Contains(said, "cannot bind '"+at.String()+"': Address already in use") {
			return fault.New(fault.Conflict, "%s is taken by %s", at, sn.server.holder(sn, at))
		}
	}
	return fault.New(fault.Unavailable, "Envoy does not get its ports: %s%s", said, Remedy(said))
}

// Remedy is what to do about what an Envoy refused.
func Remedy(reason string) string {
	switch {
	case strings.Contains(reason, "Address already in use"):
		return "; something else listens there: choose another --inbound or --outbound, or end it"
	case strings.Contains(reason, "Permission denied"):
		return "; that user may not listen there: choose a port from 1024 on"
	case strings.Contains(reason, "Cannot assign requested address"):
		return "; this machine has no such address"
	}
	return "; that is a mistake of ours, or this Envoy is too old: its version is in legation check"
}

// holder says who has an address that a session wanted.
func (s *Server) holder(sn *session, at netip.AddrPort) string {
	for _, o := range s.all() {
		if o == sn || !sameNetwork(o.runPID, sn.runPID) {
			continue
		}
		for _, have := range o.listens() {
			if !overlap(have, at) {
				continue
			}
			return fmt.Sprintf("the program of %s (session %s, process %d); give another port, or end that one", o.spiffeID(), o.id, o.start.ChildPid)
		}
	}
	return fmt.Sprintf("another program; give another port, or see which: ss -ltnp 'sport = :%d'", at.Port())
}

// overlap reports whether one listener keeps the other from being.
func overlap(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified())
}

// sameNetwork reports whether two processes are known to be in one network
// namespace.
func sameNetwork(a, b int32) bool {
	one, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", a))
	if err != nil {
		return false
	}
	other, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", b))
	return err == nil && os.SameFile(one, other)
}
