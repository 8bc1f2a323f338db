package capture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if args := os.Getenv("LEGATION_TEST_ARGS"); args != "" {
		os.Exit(program(args))
	}
	goleak.VerifyTestMain(m)
}

// world is two network namespaces joined by a veth: the program's, which is
// captured, and the rest of the world.
type world struct {
	here, there string // names of namespaces
}

const (
	here4, here6   = "10.77.0.1", "fd77::1"
	there4, there6 = "10.77.0.2", "fd77::2"
)

var worlds atomic.Int32

func newWorld(t *testing.T) *world {
	t.Helper()
	n := worlds.Add(1)
	w := &world{fmt.Sprintf("lgtc%d-%d-a", os.Getpid(), n), fmt.Sprintf("lgtc%d-%d-b", os.Getpid(), n)}
	for _, ns := range []string{w.here, w.there} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
		run(t, "ip", "netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	}
	run(t, "ip", "-n", w.here, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", w.there)
	for ns, addrs := range map[string][2]string{w.here: {here4 + "/24", here6 + "/64"}, w.there: {there4 + "/24", there6 + "/64"}} {
		run(t, "ip", "-n", ns, "addr", "add", addrs[0], "dev", "eth0")
		run(t, "ip", "-n", ns, "addr", "add", addrs[1], "dev", "eth0", "nodad")
		run(t, "ip", "-n", ns, "link", "set", "eth0", "up")
	}
	return w
}

func path(ns string) string { return "/run/netns/" + ns }

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

// in runs f on a thread of the namespace that is thrown away afterwards;
// sockets that f makes stay there.
func in(t testing.TB, ns string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		fd, err := unix.Open(path(ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func listen(t testing.TB, ns, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := in(t, ns, func() (err error) { l, err = net.Listen(network, address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// greet answers each connection with word and what its original destination
// was.
func greet(t testing.TB, l net.Listener, word string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			original, err := originalDst(c.(*net.TCPConn))
			fmt.Fprintf(c, "%s %s %v\n", word, original, err)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// dial connects and reads one line; control, if given, is applied to the
// socket first.
func dial(t testing.TB, ns, address string, control func(network, address string, c syscall.RawConn) error) (string, error) {
	t.Helper()
	var line string
	err := in(t, ns, func() error {
		d := net.Dialer{Timeout: 3 * time.Second, Control: control}
		c, err := d.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		line, err = firstLine(c)
		return err
	})
	return line, err
}

func firstLine(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	b := make([]byte, 200)
	n, err := c.Read(b)
	return string(bytes.TrimSpace(b[:n])), err
}

// marked sets SO_MARK as Envoy does.
func marked(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, DefaultMark) }); e != nil {
		return e
	}
	return err
}

// originalDst is what Envoy's listener filter asks the kernel for.
func originalDst(c *net.TCPConn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	var out string
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
			var a *unix.IPv6Mreq // a buffer of the right length; the kernel writes sockaddr_in
			if a, sysErr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); sysErr == nil {
				b := a.Multiaddr
				out = fmt.Sprintf("%d.%d.%d.%d:%d", b[4], b[5], b[6], b[7], int(b[2])<<8|int(b[3]))
			}
			return
		}
		var a *unix.IPv6MTUInfo // begins with sockaddr_in6
		if a, sysErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, unix.SO_ORIGINAL_DST); sysErr == nil {
			port := a.Addr.Port<<8 | a.Addr.Port>>8
			out = net.JoinHostPort(net.IP(a.Addr.Addr[:]).String(), fmt.Sprint(port))
		}
	})
	if err == nil {
		err = sysErr
	}
	return out, err
}

// asNobody runs this test binary as an unprivileged user in the namespace.
func asNobody(t testing.TB, ns string, args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lgtc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/test", self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	err = in(t, ns, func() error {
		cmd := exec.Command(dir + "/test")
		cmd.Env = []string{"LEGATION_TEST_ARGS=" + string(text)}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("as nobody: %v: %s", err, out)
	}
	return string(bytes.TrimSpace(out))
}

// program is what asNobody runs: it says what happened.
func program(text string) int {
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		fmt.Println(err)
		return 1
	}
	switch args[0] {
	case "dial", "dial marked":
		d := net.Dialer{Timeout: 3 * time.Second}
		if args[0] == "dial marked" {
			d.Control = marked
		}
		c, err := d.Dial("tcp", args[1])
		if err != nil {
			fmt.Println(err)
			return 0
		}
		line, err := firstLine(c)
		if err != nil {
			fmt.Println(err)
			return 0
		}
		fmt.Println(line)
		return 0
	case "install":
		_, err := Install(Params{NetNS: args[1]})
		fmt.Println(err)
		return 0
	}
	return 1
}
