package capture

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is a conjunction of matches with what to do at its end.
type rule = []expr.Any

type ruledChain struct {
	chain *nftables.Chain
	rules []rule
}

// chains are the whole table. Each rule's meaning stands beside it in nft's
// own words.
func chains(p Params, t *nftables.Table) []ruledChain {
	natChain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		accept := nftables.ChainPolicyAccept
		return &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook,
			Priority: nftables.ChainPriorityNATDest, Policy: &accept}
	}
	filterChain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		drop := nftables.ChainPolicyDrop
		return &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityFilter, Policy: &drop}
	}
	return []ruledChain{
		{natChain("nat_output", nftables.ChainHookOutput), natOutput(p)},
		{natChain("nat_prerouting", nftables.ChainHookPrerouting), natPrerouting(p)},
		{filterChain("output", nftables.ChainHookOutput), output(p)},
		{filterChain("input", nftables.ChainHookInput), input(p)},
	}
}

func natOutput(p Params) []rule {
	return []rule{
		join(mark(p.Mark), verdict(expr.VerdictReturn)),       // meta mark M return
		join(loopback(outgoing), verdict(expr.VerdictReturn)), // oifname "lo" return
		join(proto(unix.IPPROTO_TCP), count(OutboundCaptured), redirect(p.OutboundPort)),
	}
}

func natPrerouting(p Params) []rule {
	rules := []rule{
		join(loopback(incoming), verdict(expr.VerdictReturn)), // iifname "lo" return
		join(notLocal(), verdict(expr.VerdictReturn)),         // fib daddr type != local return
	}
	for _, port := range append([]uint16{p.OutboundPort, p.InboundPort}, p.ExcludeInboundPorts...) {
		rules = append(rules, join(destination(unix.IPPROTO_TCP, port), verdict(expr.VerdictReturn)))
	}
	return append(rules, join(proto(unix.IPPROTO_TCP), count(InboundCaptured), redirect(p.InboundPort)))
}

func output(p Params) []rule {
	rules := []rule{
		join(loopback(outgoing), verdict(expr.VerdictAccept)),
		join(mark(p.Mark), verdict(expr.VerdictAccept)),
		join(captured(), verdict(expr.VerdictAccept)), // ct status dnat accept, both directions
		join(reply(), verdict(expr.VerdictAccept)),    // of what input let in, and resets
		join(proto(unix.IPPROTO_ICMP), verdict(expr.VerdictAccept)),
		join(proto(unix.IPPROTO_ICMPV6), verdict(expr.VerdictAccept)),
	}
	for _, port := range p.AllowUDPPorts {
		rules = append(rules, join(destination(unix.IPPROTO_UDP, port), verdict(expr.VerdictAccept)))
	}
	return append(rules,
		join(proto(unix.IPPROTO_TCP), count(OutboundTCPRefused), reset()),
		join(proto(unix.IPPROTO_UDP), count(OutboundUDPRefused), unreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH)),
		join(count(OutboundElseRefused), unreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)),
	)
}

func input(p Params) []rule {
	var rules []rule
	if p.MarkedListeners {
		// Before all else: connections redirected on loopback too.
		for _, port := range []uint16{p.OutboundPort, p.InboundPort} {
			rules = append(rules, join(destination(unix.IPPROTO_TCP, port), socketNotMarked(p.Mark), count(UnmarkedRefused), reset()))
		}
	}
	rules = append(rules,
		join(loopback(incoming), verdict(expr.VerdictAccept)),
		join(captured(), verdict(expr.VerdictAccept)),
		join(reply(), verdict(expr.VerdictAccept)),
		join(proto(unix.IPPROTO_ICMP), verdict(expr.VerdictAccept)),
		join(proto(unix.IPPROTO_ICMPV6), verdict(expr.VerdictAccept)),
	)
	for _, port := range []uint16{p.OutboundPort, p.InboundPort} {
		rules = append(rules, join(destination(unix.IPPROTO_TCP, port), count(DirectRefused), reset()))
	}
	for _, port := range p.ExcludeInboundPorts {
		rules = append(rules, join(destination(unix.IPPROTO_TCP, port), verdict(expr.VerdictAccept)))
	}
	return append(rules,
		join(proto(unix.IPPROTO_TCP), count(InboundTCPRefused), reset()),
		join(proto(unix.IPPROTO_UDP), count(InboundUDPRefused), unreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH)),
		join(count(InboundElseRefused), unreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)),
	)
}

const reg = unix.NFT_REG_1

func join(parts ...rule) rule {
	var out rule
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

func mark(m uint32) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, equal(binaryutil.NativeEndian.PutUint32(m))}
}

const (
	incoming = expr.MetaKeyIIFNAME
	outgoing = expr.MetaKeyOIFNAME
)

func loopback(direction expr.MetaKey) rule {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return rule{&expr.Meta{Key: direction, Register: reg}, equal(name)}
}

func proto(number byte) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal([]byte{number})}
}

// destination matches a protocol and its destination port.
func destination(number byte, port uint16) rule {
	return join(proto(number), rule{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(binaryutil.BigEndian.PutUint16(port)),
	})
}

func notLocal() rule {
	return rule{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

const (
	ctStatusDNAT       = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	ctStateEstablished = 1 << 1 // as nft_ct counts them
	ctStateRelated     = 1 << 2
	ctDirectionReply   = 1
)

func flag(key expr.CtKey, bits uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// captured is a packet of a connection that was redirected, either way.
func captured() rule { return flag(expr.CtKeySTATUS, ctStatusDNAT) }

// reply is an answer to what the other chain let through. The direction
// matters: a connection older than the rules is established as well, and its
// first direction must not pass.
func reply() rule {
	return join(rule{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal([]byte{ctDirectionReply})},
		flag(expr.CtKeySTATE, ctStateEstablished|ctStateRelated))
}

// socketNotMarked matches a packet whose receiving socket lacks the mark, or
// that has a socket without one; a packet without any socket is refused by
// the kernel itself.
func socketNotMarked(m uint32) rule {
	return rule{
		&expr.Socket{Key: expr.SocketKeyMark, Register: reg},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(m)},
	}
}

func verdict(kind expr.VerdictKind) rule { return rule{&expr.Verdict{Kind: kind}} }

func count(name string) rule {
	return rule{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}
}

const rangeSpecified = 0x2 // NF_NAT_RANGE_PROTO_SPECIFIED

func redirect(port uint16) rule {
	return rule{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: rangeSpecified},
	}
}

func reset() rule { return rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

func unreachable(code uint8) rule {
	return rule{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code}}
}
