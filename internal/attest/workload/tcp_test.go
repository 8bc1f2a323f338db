package workload

import (
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/legation-io/legation/internal/fault"
)

func TestATCPCallerIsServedOnlyIfOneProcessHoldsTheSocket(t *testing.T) {
	a := running(t)
	t.Run("one process", func(t *testing.T) {
		p := start(t, "tcp-wait")
		c := p.mustCaller(a)
		if int(c.PID()) != p.cmd.Process.Pid {
			t.Errorf("pid %d, want %d", c.PID(), p.cmd.Process.Pid)
		}
		got, err := c.Selectors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if self, _ := os.Readlink("/proc/self/exe"); !slices.Contains(got, "unix:path:"+self) {
			t.Errorf("%q misses its path", got)
		}
		if err := c.Recheck(); err != nil {
			t.Error(err)
		}
		p.kill()
		if err := c.Recheck(); !fault.Is(err, fault.Denied) {
			t.Errorf("after its end: %v", err)
		}
	})
	t.Run("a second one gets a copy of the socket after attestation", func(t *testing.T) {
		p := start(t, "tcp-pass")
		c := p.mustCaller(a)
		if _, err := c.Selectors(t.Context()); err != nil {
			t.Fatal(err)
		}
		io.WriteString(p.in, "\n")
		child, _ := strconv.Atoi(p.line(""))
		defer syscall.Kill(child, syscall.SIGKILL)
		if err := c.Recheck(); !fault.Is(err, fault.Denied) {
			t.Errorf("Recheck: %v", err)
		}
		if _, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("Selectors: %v", err)
		}
		if _, err := p.caller(a); !fault.Is(err, fault.Denied) {
			t.Errorf("attested anew: %v", err)
		}
	})
	t.Run("another one is the only holder after attestation", func(t *testing.T) {
		p := start(t, "tcp-hand")
		c := p.mustCaller(a)
		if _, err := c.Selectors(t.Context()); err != nil {
			t.Fatal(err)
		}
		io.WriteString(p.in, "\n")
		child, _ := strconv.Atoi(p.line(""))
		defer syscall.Kill(child, syscall.SIGKILL)
		if err := c.Recheck(); !fault.Is(err, fault.Denied) {
			t.Errorf("Recheck: %v", err)
		}
		if _, err := c.Selectors(t.Context()); !fault.Is(err, fault.Denied) {
			t.Errorf("Selectors: %v", err)
		}
	})
	t.Run("over IPv6", func(t *testing.T) {
		l, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c, err := a.FromTCP(conn.(*net.TCPConn))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if int(c.PID()) != os.Getpid() {
			t.Errorf("pid %d", c.PID())
		}
	})
	t.Run("not over loopback", func(t *testing.T) {
		peer := net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
		if addrPort(&peer).Addr().IsLoopback() {
			t.Error("192.0.2.1 counts as loopback")
		}
	})
}
