package envoy

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// socket is one line of /proc/<pid>/net/tcp or tcp6.
type socket struct {
	pair  Pair
	state uint8
	inode uint64
}

// States of TCP that a closer leaves alone (include/net/tcp_states.h).
const (
	stateTimeWait = 0x06
	stateListen   = 0x0a
)

// sockets calls each with every TCP socket, IPv4 and IPv6, of the network
// namespace that pid lives in.
func sockets(proc string, pid int, each func(socket)) error {
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "net", name))
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("list the sockets of Envoy's network namespace: %w", err)
		}
		err = parseSockets(f, each)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
	}
	return nil
}

// parseSockets reads the kernel's table: a heading, then
// "sl local:port remote:port st … inode …" with addresses in hex words of
// the machine's byte order.
func parseSockets(r io.Reader, each func(socket)) error {
	lines := bufio.NewScanner(r)
	lines.Scan()
	var fields [10][]byte
	for lines.Scan() {
		if !splitFields(lines.Bytes(), fields[:]) {
			return fmt.Errorf("line %q has too few fields", lines.Text())
		}
		local, okL := parseHexAddr(fields[1])
		remote, okR := parseHexAddr(fields[2])
		state, errS := strconv.ParseUint(string(fields[3]), 16, 8)
		inode, errI := strconv.ParseUint(string(fields[9]), 10, 64)
		if !okL || !okR || errS != nil || errI != nil {
			return fmt.Errorf("line %q is not understood", lines.Text())
		}
		each(socket{Pair{local, remote}, uint8(state), inode})
	}
	return lines.Err()
}

// splitFields fills out with the first fields of line.
func splitFields(line []byte, out [][]byte) bool {
	n := 0
	for i := 0; i < len(line) && n < len(out); {
		for i < len(line) && line[i] == ' ' {
			i++
		}
		start := i
		for i < len(line) && line[i] != ' ' {
			i++
		}
		if i > start {
			out[n] = line[start:i]
			n++
		}
	}
	return n == len(out)
}

func parseHexAddr(b []byte) (netip.AddrPort, bool) {
	colon := len(b) - 5
	if (colon != 8 && colon != 32) || b[colon] != ':' {
		return netip.AddrPort{}, false
	}
	var raw [16]byte
	var port [2]byte
	if _, err := hex.Decode(raw[:colon/2], b[:colon]); err != nil {
		return netip.AddrPort{}, false
	}
	if _, err := hex.Decode(port[:], b[colon+1:]); err != nil {
		return netip.AddrPort{}, false
	}
	for i := 0; i < colon/2; i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip := netip.AddrFrom16(raw).Unmap()
	if colon == 8 {
		ip = netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(port[:])), true
}

// descriptors calls each with every socket among pid's file descriptors,
// until it returns false.
func descriptors(proc string, pid int, each func(fd int, inode uint64) bool) error {
	dir := filepath.Join(proc, strconv.Itoa(pid), "fd")
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("list Envoy's file descriptors: %w", err)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(512)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list Envoy's file descriptors: %w", err)
		}
		for _, name := range names {
			target, err := os.Readlink(dir + "/" + name)
			if err != nil {
				continue // closed meanwhile
			}
			rest, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			inode, errI := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
			fd, errF := strconv.Atoi(name)
			if errI == nil && errF == nil && !each(fd, inode) {
				return nil
			}
		}
	}
}
