package world

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Listening lists what a process listens on: "tcp ADDRESS:PORT",
// "udp ADDRESS:PORT", "unix PATH". Ports that are connected are not listed.
func Listening(t testing.TB, pid int) []string {
	t.Helper()
	inodes := map[string]bool{}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("process %d has no file descriptors to look at: %v", pid, err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:[") {
			inodes[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	var list []string
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6"} {
		for _, f := range table(t, pid, kind) {
			// proc(5): sl local rem st tx:rx tr:when retrnsmt uid timeout inode
			bound := f[3] == "0A" || strings.HasPrefix(kind, "udp") && f[3] == "07"
			if len(f) > 9 && bound && inodes[f[9]] {
				list = append(list, kind[:3]+" "+address(t, f[1]))
			}
		}
	}
	for _, f := range table(t, pid, "unix") {
		// Num RefCount Protocol Flags Type St Inode Path; flag 00010000 accepts
		if len(f) > 6 && f[3] == "00010000" && inodes[f[6]] {
			path := strings.Join(f[7:], " ")
			if filepath.Base(path) == "s" && strings.HasPrefix(filepath.Base(filepath.Dir(path)), ".s") {
				path = "made under another name" // internal/unixsocket renames when the mode is set
			}
			list = append(list, "unix "+path)
		}
	}
	slices.Sort(list)
	return list
}

func table(t testing.TB, pid int, kind string) (rows [][]string) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(raw), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 3 {
			rows = append(rows, f)
		}
	}
	return rows
}

// address reads the kernel's hexadecimal, 32-bit words in host order.
func address(t testing.TB, s string) string {
	t.Helper()
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil {
		t.Fatalf("address %q: %v %v", s, err, perr)
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	ip, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String()
}

// RSS is a process's resident memory in bytes.
func RSS(t testing.TB, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	t.Fatalf("process %d tells no VmRSS", pid)
	return 0
}
