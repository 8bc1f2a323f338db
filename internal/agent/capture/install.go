package capture

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legation-io/legation/internal/fault"
)

// Rules is an installed table. It stays when the process ends: only Remove
// takes it away.
type Rules struct {
	netns *os.File
	owner string
}

// Install puts the rules into the namespace, all in one batch: there is no
// moment with half of them. A table of ours whose installer is gone, or is
// this process, is replaced in the same batch, and what it captured stays
// connected. fault.Conflict: the table belongs to another living process, or
// is not ours; fault.Denied: no CAP_NET_ADMIN there, or the machine's own
// namespace without AllowHost.
func Install(p Params) (*Rules, error) {
	if err := p.complete(); err != nil {
		return nil, err
	}
	path := p.NetNS
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	netns, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "capture: open network namespace: %w", err)
	}
	r, err := install(p, netns)
	if err != nil {
		netns.Close()
		return nil, err
	}
	return r, nil
}

func install(p Params, netns *os.File) (*Rules, error) {
	if !p.AllowHost {
		host, err := isHost(netns)
		if err != nil {
			return nil, err
		}
		if host {
			return nil, fault.New(fault.Denied, "capture: %s is the machine's own network namespace and every program on it would be captured; start the program in a namespace of its own (ip netns exec, unshare --net, a container), use explicit ports, or say that the host is meant", netns.Name())
		}
	}
	started, err := startTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	r := &Rules{netns: netns, owner: ownerName(os.Getpid(), started)}
	conn, err := r.conn()
	if err != nil {
		return nil, err
	}
	stale, err := r.stale(conn)
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	if stale {
		conn.DelTable(table)
	}
	conn.CreateTable(table)
	for _, name := range append([]string{r.owner}, counterNames...) {
		conn.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for _, c := range chains(p, table) {
		conn.AddChain(c.chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: exprs})
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, explain("install the rules", err)
	}
	return r, nil
}

// Remove takes the table away, if it is still this one.
func (r *Rules) Remove() error {
	defer r.netns.Close()
	conn, err := r.conn()
	if err != nil {
		return err
	}
	owner, exists, err := r.owned(conn)
	if err != nil {
		return err
	}
	if !exists || owner != r.owner {
		return nil // removed or replaced: not ours to touch
	}
	conn.DelTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain("remove the rules", err)
	}
	return nil
}

// Counters returns what was captured and refused so far, by name.
func (r *Rules) Counters() (map[string]Counter, error) {
	conn, err := r.conn()
	if err != nil {
		return nil, err
	}
	objs, err := conn.GetNamedObjects(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
	if err != nil {
		return nil, explain("read the counters", err)
	}
	out := make(map[string]Counter, len(counterNames))
	for _, o := range objs {
		named, ok := o.(*nftables.NamedObj)
		if !ok || strings.HasPrefix(named.Name, ownerPrefix) {
			continue
		}
		if c, ok := named.Obj.(*expr.Counter); ok {
			out[named.Name] = Counter{Packets: c.Packets, Bytes: c.Bytes}
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.NotFound, "capture: the table %s is gone from %s: nothing is captured; something else removed it", TableName, r.netns.Name())
	}
	return out, nil
}

func (r *Rules) conn() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(r.netns.Fd())))
	if err != nil {
		return nil, explain("open netlink", err)
	}
	return conn, nil
}

// owned reads who installed the table.
func (r *Rules) owned(conn *nftables.Conn) (owner string, exists bool, err error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", false, explain("list the tables", err)
	}
	for _, t := range tables {
		if t.Name != TableName {
			continue
		}
		objs, err := conn.GetNamedObjects(t)
		if err != nil {
			return "", true, explain("read the owner of the table", err)
		}
		for _, o := range objs {
			if named, ok := o.(*nftables.NamedObj); ok && strings.HasPrefix(named.Name, ownerPrefix) {
				return named.Name, true, nil
			}
		}
		return "", true, nil
	}
	return "", false, nil
}

// stale reports whether there is a table that may be replaced.
func (r *Rules) stale(conn *nftables.Conn) (bool, error) {
	owner, exists, err := r.owned(conn)
	if err != nil || !exists {
		return false, err
	}
	if owner == r.owner {
		return true, nil
	}
	pid, started, ok := parseOwner(owner)
	if !ok {
		return false, fault.New(fault.Conflict, "capture: %s already has a table inet %s that is not of this program's making; look at it with nft list table inet %s and delete it with nft delete table inet %s", r.netns.Name(), TableName, TableName, TableName)
	}
	if now, err := startTime(pid); err == nil && now == started {
		return false, fault.New(fault.Conflict, "capture: %s is already captured by process %d; one program with capture to a network namespace", r.netns.Name(), pid)
	}
	return true, nil
}

// explain adds what a person can do.
func explain(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fault.New(fault.Denied, "capture: %s: %w; it wants CAP_NET_ADMIN over the namespace: run as root, or use explicit ports", what, err)
	case errors.Is(err, unix.EEXIST):
		return fault.New(fault.Conflict, "capture: %s: %w; another program made a table %s at the same moment", what, err, TableName)
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT):
		return fault.New(fault.Unavailable, "capture: %s: %w; the kernel lacks nf_tables with nat, redirect, reject or fib for inet", what, err)
	}
	return fmt.Errorf("capture: %s: %w", what, err)
}

// Inodes of the initial namespaces that the kernel fixes
// (linux/nsfs.h; the network's in every kernel from 6.18 on).
const (
	initPIDNS = 0xEFFFFFFC
	initNetNS = 0xEFFFFFF9
)

// isHost reports whether it is the machine's initial network namespace. Where
// its inode is not fixed, it is that of process 1, when our own processes are
// counted where the machine's are.
func isHost(netns *os.File) (bool, error) {
	var this, pid, first unix.Stat_t
	if err := unix.Fstat(int(netns.Fd()), &this); err != nil {
		return false, fmt.Errorf("capture: look at network namespace %s: %w", netns.Name(), err)
	}
	if this.Ino == initNetNS || fixedInodes() {
		return this.Ino == initNetNS, nil
	}
	if err := unix.Stat("/proc/self/ns/pid", &pid); err != nil {
		return false, fmt.Errorf("capture: look at the process namespace: %w", err)
	}
	if pid.Ino != initPIDNS {
		return false, nil
	}
	if err := unix.Stat("/proc/1/ns/net", &first); err != nil {
		return false, fault.New(fault.Denied, "capture: compare with the machine's network namespace: %w; run as root, or say that the host is meant", err)
	}
	return this.Ino == first.Ino && this.Dev == first.Dev, nil
}

func fixedInodes() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 6 || major == 6 && minor >= 18
}

// startTime tells a process from a later one with the same pid: field 22 of
// /proc/<pid>/stat.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("capture: look at process %d: %w", pid, err)
	}
	i := bytes.LastIndexByte(b, ')') // the name before may hold anything
	fields := strings.Fields(string(b[i+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("capture: /proc/%d/stat is not understood", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
