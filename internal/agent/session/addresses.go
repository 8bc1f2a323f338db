package session

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/legation-io/legation/internal/attest/workload"
	"github.com/legation-io/legation/internal/fault"
)

// addressesOf reads the addresses in a process's network namespace, which is
// where its Envoy is reached.
func addressesOf(child *workload.Caller) func() ([]netip.Addr, error) {
	return func() ([]netip.Addr, error) {
		dir := fmt.Sprintf("/proc/%d/net/", child.PID())
		v4, err := os.ReadFile(dir + "fib_trie")
		if err != nil {
			return nil, fmt.Errorf("addresses of process %d: %w", child.PID(), err)
		}
		v6, err := os.ReadFile(dir + "if_inet6")
		if err != nil && !os.IsNotExist(err) { // absent: the kernel has no IPv6
			return nil, fmt.Errorf("addresses of process %d: %w", child.PID(), err)
		}
		if !child.Alive() { // else the pid may be another's by now
			return nil, fault.New(fault.NotFound, "process %d has ended", child.PID())
		}
		return append(localAddresses(v4), inet6Addresses(v6)...), nil
	}
}

// localAddresses are the global ones in /proc/net/fib_trie: each "host LOCAL"
// line follows the address it is about.
func localAddresses(trie []byte) []netip.Addr {
	var all []netip.Addr
	seen := map[netip.Addr]bool{} // the tables main and local repeat them
	var last netip.Addr
	for s := bufio.NewScanner(bytes.NewReader(trie)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if text, leaf := strings.CutPrefix(line, "|-- "); leaf {
			last, _ = netip.ParseAddr(text)
		} else if line == "/32 host LOCAL" && reachable(last) && !seen[last] {
			seen[last] = true
			all = append(all, last)
		}
	}
	return all
}

// inet6Addresses are the global ones in /proc/net/if_inet6 that are in use.
func inet6Addresses(table []byte) []netip.Addr {
	const tentative, failed = 0x40, 0x08
	var all []netip.Addr
	for s := bufio.NewScanner(bytes.NewReader(table)); s.Scan(); {
		// address, interface, prefix length, scope, flags, name
		fields := strings.Fields(s.Text())
		if len(fields) < 6 {
			continue
		}
		raw, err := hex.DecodeString(fields[0])
		flags, ferr := hex.DecodeString(fields[4])
		if err != nil || ferr != nil || len(flags) != 1 || flags[0]&(tentative|failed) != 0 {
			continue
		}
		if ip, ok := netip.AddrFromSlice(raw); ok && ip.Is6() && reachable(ip) {
			all = append(all, ip.Unmap())
		}
	}
	return all
}

func reachable(ip netip.Addr) bool {
	return ip.IsValid() && net.IP(ip.AsSlice()).IsGlobalUnicast()
}
