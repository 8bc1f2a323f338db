// Package capture puts an Envoy into the path of a program that knows nothing
// of it: rules of one nftables table in the program's network namespace send
// every TCP connection, IPv4 and IPv6, to the Envoy's ports, and refuse what
// cannot be carried under mutual TLS. It decides nothing about destinations;
// that is the Envoy's configuration.
//
// The rules fail closed: they are there before the program starts and stay
// while the Envoy is down; a connection is then refused. The Envoy's own
// connections pass by their mark (SO_MARK), never by uid: a program without
// CAP_NET_ADMIN and CAP_NET_RAW cannot set it. A program that has these
// capabilities can leave the capture (CAP_NET_RAW also opens packet sockets,
// which no table sees).
//
// What the Envoy's listeners must look like (tried on Linux 6.18):
//
//   - outbound: REDIRECT of local connections goes to 127.0.0.1 and ::1, so
//     it listens on 127.0.0.1:15001 with [::1]:15001 as additional address,
//     or on [::]:15001 with ipv4_compat.
//   - inbound: REDIRECT of arriving connections goes to the receiving
//     interface's own address, so it listens on [::]:15006 with ipv4_compat,
//     or on 0.0.0.0:15006 with [::]:15006 as additional address.
//   - in a namespace where IPv6 is switched off (disable_ipv6) [::1] cannot be
//     bound, and Envoy refuses the whole listener for it; [::] can.
//   - both: the listener filter envoy.filters.listener.original_dst; the
//     destination it finds is right for both families. A connection made
//     to 15001 or 15006 itself is refused here when it comes from outside;
//     from inside it reaches Envoy with its own port as destination.
//   - each upstream cluster, those to the program on loopback included:
//     upstream_bind_config.socket_options {level 1, name 36, int_value Mark,
//     state STATE_PREBIND}.
//   - with Params.MarkedListeners also each of these listeners:
//     socket_options with the same.
package capture

import (
	"fmt"
	"slices"
	"strings"

	"github.com/legation-io/legation/internal/fault"
)

// What is used where Params say nothing: the ports and the mark that people
// know.
const (
	DefaultMark         = 0x539
	DefaultOutboundPort = 15001
	DefaultInboundPort  = 15006
	dnsPort             = 53
)

// TableName is the one nftables table, of family inet.
const TableName = "legation"

// Params says what to capture.
type Params struct {
	// NetNS is the path of the network namespace, e.g. /proc/123/ns/net;
	// empty is the calling thread's.
	NetNS string
	// Mark exempts the Envoy's own connections; 0 takes DefaultMark.
	Mark uint32
	// OutboundPort and InboundPort are the Envoy's; 0 takes the defaults.
	OutboundPort, InboundPort uint16
	// ExcludeInboundPorts are TCP ports that stay plaintext from outside.
	ExcludeInboundPorts []uint16
	// AllowUDPPorts are the UDP ports that the program may send to; nil
	// allows DNS (53), an empty list nothing.
	AllowUDPPorts []uint16
	// MarkedListeners lets connections reach the Envoy's two ports only when
	// the listening socket carries Mark. Then no other program can take a
	// port over while the Envoy is down; the Envoy's listeners must set it.
	MarkedListeners bool
	// AllowHost permits the machine's initial network namespace, where
	// every program is captured.
	AllowHost bool
}

// maxPorts bounds a list of ports: each is one rule.
const maxPorts = 64

func (p *Params) complete() error {
	if p.Mark == 0 {
		p.Mark = DefaultMark
	}
	if p.OutboundPort == 0 {
		p.OutboundPort = DefaultOutboundPort
	}
	if p.InboundPort == 0 {
		p.InboundPort = DefaultInboundPort
	}
	if p.AllowUDPPorts == nil {
		p.AllowUDPPorts = []uint16{dnsPort}
	}
	if p.OutboundPort == p.InboundPort {
		return fault.New(fault.Invalid, "capture: the outbound and the inbound port are both %d; they must differ", p.InboundPort)
	}
	if len(p.ExcludeInboundPorts) > maxPorts || len(p.AllowUDPPorts) > maxPorts {
		return fault.New(fault.Invalid, "capture: at most %d ports in a list", maxPorts)
	}
	for _, port := range p.ExcludeInboundPorts {
		if port == p.OutboundPort || port == p.InboundPort {
			return fault.New(fault.Invalid, "capture: port %d is the Envoy's own and cannot be excluded", port)
		}
	}
	if slices.Contains(p.ExcludeInboundPorts, 0) || slices.Contains(p.AllowUDPPorts, 0) {
		return fault.New(fault.Invalid, "capture: 0 is no port")
	}
	return nil
}

// Counter of packets that met a rule. For captured connections it counts
// connections: only the first packet of each is looked at.
type Counter struct {
	Packets, Bytes uint64
}

// Names of counters.
const (
	OutboundCaptured    = "outbound_captured"
	InboundCaptured     = "inbound_captured"
	OutboundTCPRefused  = "outbound_tcp_refused"
	OutboundUDPRefused  = "outbound_udp_refused"
	OutboundElseRefused = "outbound_else_refused" // SCTP, raw IP and the like
	InboundTCPRefused   = "inbound_tcp_refused"
	InboundUDPRefused   = "inbound_udp_refused"
	InboundElseRefused  = "inbound_else_refused"
	DirectRefused       = "direct_refused"   // from outside to the Envoy's own ports
	UnmarkedRefused     = "unmarked_refused" // the port's listener is not the Envoy's
)

var counterNames = []string{
	OutboundCaptured, InboundCaptured, OutboundTCPRefused, OutboundUDPRefused, OutboundElseRefused,
	InboundTCPRefused, InboundUDPRefused, InboundElseRefused, DirectRefused, UnmarkedRefused,
}

// ownerPrefix starts the name of the counter that says which process
// installed the table: owner_<pid>_<start time in clock ticks>.
const ownerPrefix = "owner_"

func ownerName(pid int, started uint64) string {
	return fmt.Sprintf("%s%d_%d", ownerPrefix, pid, started)
}

func parseOwner(name string) (pid int, started uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, ownerPrefix)
	if !ok {
		return 0, 0, false
	}
	if n, err := fmt.Sscanf(rest, "%d_%d", &pid, &started); n != 2 || err != nil {
		return 0, 0, false
	}
	return pid, started, name == ownerName(pid, started)
}
