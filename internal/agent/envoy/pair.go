package envoy

import (
	"fmt"
	"net/netip"
)

// Pair is a TCP connection as the kernel's socket on Envoy's side has it.
// IPv4 is never written as an IPv6 address that maps it.
type Pair struct {
	Local, Remote netip.AddrPort
}

// String is "local remote".
func (p Pair) String() string { return p.Local.String() + " " + p.Remote.String() }

// ParsePair reads two "ip:port".
func ParsePair(local, remote string) (Pair, error) {
	l, err := netip.ParseAddrPort(local)
	if err != nil {
		return Pair{}, fmt.Errorf("local address of a connection: %w", err)
	}
	r, err := netip.ParseAddrPort(remote)
	if err != nil {
		return Pair{}, fmt.Errorf("remote address of a connection: %w", err)
	}
	return Pair{unmap(l), unmap(r)}, nil
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
