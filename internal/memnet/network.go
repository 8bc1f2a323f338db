package memnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// loopback is the host that a Network itself listens and dials on.
const loopback = "127.0.0.1"

// Everyone stands for all other hosts in Partition, Heal and Reset.
const Everyone = "*"

// Network is a network in memory. Its own Listen and DialContext are those of
// the host 127.0.0.1. It is safe for concurrent use and has no goroutines.
type Network struct {
	cuts atomic.Pointer[map[pair]struct{}] // replaced whole, under mu

	mu        sync.Mutex // guards all below
	listeners map[endpoint]*listener
	conns     map[*conn]struct{} // both ends of each
	port      int                // last one given
}

type endpoint struct{ family, addr string } // family is "tcp" or "unix/<host>"

type pair struct{ a, b string } // a < b

func pairOf(a, b string) pair { return pair{min(a, b), max(a, b)} }

// New returns a network without hosts; they come to be by being named.
func New() *Network {
	n := &Network{listeners: map[endpoint]*listener{}, conns: map[*conn]struct{}{}, port: 32767}
	n.cuts.Store(&map[pair]struct{}{})
	return n
}

// Host returns the network as the host of that name (an IP address, or
// anything without ':' and '/') sees it. On it an empty, unspecified or
// loopback address is the host itself; unix sockets are its own.
func (n *Network) Host(name string) Transport { return host{n, name} }

// Listen listens on 127.0.0.1.
func (n *Network) Listen(network, addr string) (net.Listener, error) {
	return host{n, loopback}.Listen(network, addr)
}

// DialContext dials from 127.0.0.1.
func (n *Network) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return host{n, loopback}.DialContext(ctx, network, addr)
}

// Partition cuts two hosts off from each other (b may be Everyone): what is
// written stays on its way, and dialing hangs, until Heal.
func (n *Network) Partition(a, b string) { n.cut(a, b, true) }

// Heal undoes Partition of the same hosts; what was on its way arrives.
func (n *Network) Heal(a, b string) { n.cut(a, b, false) }

func (n *Network) cut(a, b string, cut bool) {
	n.mu.Lock()
	cuts := map[pair]struct{}{}
	for p := range *n.cuts.Load() {
		cuts[p] = struct{}{}
	}
	if cut {
		cuts[pairOf(a, b)] = struct{}{}
	} else {
		delete(cuts, pairOf(a, b))
	}
	n.cuts.Store(&cuts)
	var wake []*sync.Cond
	for c := range n.conns {
		wake = append(wake, c.in.cond)
	}
	for _, l := range n.listeners {
		wake = append(wake, l.cond)
	}
	n.mu.Unlock()
	for _, c := range wake {
		c.L.Lock()
		c.Broadcast()
		c.L.Unlock()
	}
}

func (n *Network) isCut(a, b string) bool {
	cuts := *n.cuts.Load()
	if len(cuts) == 0 || a == b {
		return false
	}
	for _, p := range []pair{pairOf(a, b), pairOf(a, Everyone), pairOf(b, Everyone)} {
		if _, ok := cuts[p]; ok {
			return true
		}
	}
	return false
}

// Reset breaks the connections between two hosts (b may be Everyone): both
// ends fail with ECONNRESET. It returns how many there were.
func (n *Network) Reset(a, b string) int {
	n.mu.Lock()
	var hit []*conn
	for c := range n.conns {
		if pairOf(c.host, c.peer) == pairOf(a, b) || b == Everyone && (c.host == a || c.peer == a) {
			hit = append(hit, c)
		}
	}
	n.mu.Unlock()
	for _, c := range hit {
		c.in.fail(syscall.ECONNRESET)
		c.out.fail(syscall.ECONNRESET)
	}
	return len(hit) / 2
}

// host is a Network as one host sees it.
type host struct {
	n    *Network
	name string
}

func (h host) resolve(network, addr string) (endpoint, error) {
	switch network {
	case "unix":
		return endpoint{"unix/" + h.name, addr}, nil
	case "tcp", "tcp4", "tcp6":
	default:
		return endpoint{}, net.UnknownNetworkError(network)
	}
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return endpoint{}, err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return endpoint{}, &net.AddrError{Err: "invalid port", Addr: addr}
	}
	ip, err := netip.ParseAddr(name)
	if name == "" || name == "localhost" || err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		name = h.name
	}
	return endpoint{"tcp", net.JoinHostPort(name, port)}, nil
}

func (h host) Listen(network, addr string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: Addr{network, addr}, Err: err}
	}
	at, err := h.resolve(network, addr)
	if err != nil {
		return fail(err)
	}
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := strings.CutSuffix(at.addr, ":0"); ok && at.family == "tcp" {
		at.addr = name + ":" + strconv.Itoa(n.freePortLocked(name))
	}
	if n.listeners[at] != nil {
		return fail(os.NewSyscallError("bind", syscall.EADDRINUSE))
	}
	l := newListener(n, h.name, at, toAddr(network, at.addr))
	n.listeners[at] = l
	return l, nil
}

func (n *Network) freePortLocked(name string) int {
	for {
		if n.port++; n.port > 65535 {
			n.port = 32768
		}
		if n.listeners[endpoint{"tcp", name + ":" + strconv.Itoa(n.port)}] == nil {
			return n.port
		}
	}
}

func (h host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{network, addr}, Err: err}
	}
	to, err := h.resolve(network, addr)
	if err != nil {
		return fail(err)
	}
	peer := h.name
	if to.family == "tcp" {
		peer, _, _ = net.SplitHostPort(to.addr)
	}
	n := h.n
	for {
		if err := ctx.Err(); err != nil {
			return fail(ctxError(err))
		}
		n.mu.Lock()
		l := n.listeners[to]
		local := Addr{network, ""}
		if to.family == "tcp" {
			local.addr = net.JoinHostPort(h.name, strconv.Itoa(n.freePortLocked(h.name)))
		}
		n.mu.Unlock()
		if n.isCut(h.name, peer) {
			if err := n.awaitHeal(ctx, h.name, peer); err != nil {
				return fail(ctxError(err))
			}
			continue
		}
		if l == nil {
			return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		near, far := n.connect(h.name, l.host, toAddr(network, local.addr), l.addr)
		if err := l.offer(ctx, far); err != nil {
			near.Close()
			far.Close()
			return fail(ctxError(err))
		}
		return near, nil
	}
}

// awaitHeal waits without a listener to wait at: the far host may have none
// yet.
func (n *Network) awaitHeal(ctx context.Context, a, b string) error {
	// A connection to oneself that is never offered serves as the place to be
	// woken at.
	near, far := n.connect(a, b, Addr{}, Addr{})
	defer near.Close()
	defer far.Close()
	return near.in.wait(ctx, func() bool { return !n.isCut(a, b) })
}

func ctxError(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded // net.Error with Timeout, as package net returns
	}
	return err
}

// Addr is an address whose host is a name.
type Addr struct{ network, addr string }

// Network returns the network it was listened or dialed with.
func (a Addr) Network() string { return a.network }
func (a Addr) String() string  { return a.addr }

// toAddr returns the types of package net where they can hold the address.
func toAddr(network, addr string) net.Addr {
	if network == "unix" {
		return &net.UnixAddr{Name: addr, Net: network}
	}
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return net.TCPAddrFromAddrPort(ap)
	}
	return Addr{network, addr}
}
