package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays the callers: WORKLOAD_HELPER says which.
func TestMain(m *testing.M) {
	if mode := os.Getenv("WORKLOAD_HELPER"); mode != "" {
		if err := helper(mode, os.Getenv("WORKLOAD_SOCKET")); err != nil {
			fmt.Println("helper:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper connects, says "ready", waits for a line and then does what mode says.
func helper(mode, socket string) error {
	if mode == "connect-and-die" {
		_, err := net.Dial("unix", socket)
		return err
	}
	network := "unix"
	if strings.HasPrefix(mode, "tcp") {
		network = "tcp"
	}
	conn, err := net.Dial(network, socket)
	if err != nil {
		return err
	}
	file, err := conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	conn.Close() // file holds the only copy
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	in.ReadString('\n')
	switch mode {
	case "wait", "tcp-wait":
	case "pass-and-die", "tcp-pass", "tcp-hand": // a child goes on with the socket
		child := exec.Command("sleep", "60")
		child.ExtraFiles = []*os.File{file}
		if err := child.Start(); err != nil {
			return err
		}
		if mode == "tcp-hand" {
			file.Close()
		}
		fmt.Println(child.Process.Pid)
		if mode != "pass-and-die" {
			in.ReadString('\n')
		}
		return nil
	case "exec": // the socket stays open across
		syscall.Syscall(syscall.SYS_FCNTL, file.Fd(), syscall.F_SETFD, 0)
		return syscall.Exec("/bin/sleep", []string{"sleep", "60"}, os.Environ())
	case "setuid":
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	case "setgid":
		if err := syscall.Setgid(65534); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown mode %q", mode)
	}
	fmt.Println("done")
	in.ReadString('\n')
	return nil
}

// process is a helper and the server's end of its connection.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	conn net.Conn
}

func start(t *testing.T, mode string) *process {
	t.Helper()
	network, addr := "unix", filepath.Join(t.TempDir(), "s")
	if strings.HasPrefix(mode, "tcp") {
		network, addr = "tcp", "127.0.0.1:0"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "WORKLOAD_HELPER="+mode, "WORKLOAD_SOCKET="+l.Addr().String())
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(p.kill)
	p.line("ready")
	switch l := l.(type) {
	case *net.UnixListener:
		l.SetDeadline(time.Now().Add(time.Minute))
	case *net.TCPListener:
		l.SetDeadline(time.Now().Add(time.Minute))
	}
	if p.conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) line(want string) string {
	p.t.Helper()
	got, err := p.out.ReadString('\n')
	if got = strings.TrimSpace(got); err != nil || want != "" && got != want {
		p.t.Fatalf("helper said %q (%v), want %q", got, err, want)
	}
	return got
}

// proceed has the helper do what its mode says and waits until it is done.
func (p *process) proceed(want string) string {
	p.t.Helper()
	io.WriteString(p.in, "\n")
	return p.line(want)
}

func (p *process) caller(a *Attestor) (*Caller, error) {
	if c, ok := p.conn.(*net.TCPConn); ok {
		return a.FromTCP(c)
	}
	return a.FromConn(p.conn.(*net.UnixConn))
}

func (p *process) mustCaller(a *Attestor) *Caller {
	p.t.Helper()
	c, err := p.caller(a)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// running gives an Attestor whose Run ends with the test.
func running(t *testing.T) *Attestor {
	a := NewAttestor(Params{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	eventually(t, "the attestor runs", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.epoll >= 0
	})
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
