package workloadapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/upstream"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// The test binary also plays the workload: WORKLOADAPI_HELPER says which.
func TestMain(m *testing.M) {
	if mode := os.Getenv("WORKLOADAPI_HELPER"); mode != "" {
		if err := helper(mode, os.Getenv("WORKLOADAPI_SOCKET")); err != nil {
			fmt.Println("helper:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper opens a stream, says which identity it got, waits for a line, and
// then does what mode says while its socket stays open.
func helper(mode, socket string) error {
	raw, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	file, err := raw.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return raw, nil }))
	if err != nil {
		return err
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true")
	s, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	r, err := s.Recv()
	if err != nil {
		return err
	}
	fmt.Println(r.Svids[0].SpiffeId)
	bufio.NewReader(os.Stdin).ReadString('\n')
	switch mode {
	case "pass-and-die":
		child := exec.Command("sleep", "60")
		child.ExtraFiles = []*os.File{file}
		if err := child.Start(); err != nil {
			return err
		}
		fmt.Println(child.Process.Pid)
		return nil
	case "exec":
		syscall.Syscall(syscall.SYS_FCNTL, file.Fd(), syscall.F_SETFD, 0)
		return syscall.Exec("/bin/sleep", []string{"sleep", "60"}, os.Environ())
	}
	return fmt.Errorf("unknown mode %q", mode)
}

// start returns the helper's standard input and its output, after its first
// line.
func start(t *testing.T, a *agent, mode string) (*exec.Cmd, io.Writer, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "WORKLOADAPI_HELPER="+mode, "WORKLOADAPI_SOCKET="+a.socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); err != nil || strings.TrimSpace(line) != webEntry().SpiffeId {
		t.Fatalf("helper said %q, %v", line, err)
	}
	return cmd, in, out
}

func (a *agent) deliveries() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.delivered)
}

func TestA20AStreamEndsWithTheProcessThatOpenedIt(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	_, in, out := start(t, a, "pass-and-die")
	fmt.Fprintln(in)
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(child, syscall.SIGKILL)
	eventually(t, "the stream is ended though a child still holds the socket", func() bool { return a.isGone(1) })
	if err := syscall.Kill(child, 0); err != nil {
		t.Errorf("the child that holds the socket is gone: %v", err)
	}
}

func TestA20NothingIsPushedToAProgramExecutedLater(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	e := webEntry()
	e.Selectors = append(e.Selectors, "unix:path:"+self)
	a := serve(t, Limits{}, e)
	cmd, in, _ := start(t, a, "exec")
	fmt.Fprintln(in)
	eventually(t, "it runs /bin/sleep", func() bool {
		exe, _ := os.Readlink("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/exe")
		return exe != self && exe != ""
	})
	if a.isGone(1) {
		t.Fatal("ended too early for this test")
	}
	crl := a.ca.crl(t, 2)
	a.change(func(v *upstream.View) { v.CRLs["default"] = crl })
	eventually(t, "the stream is ended", func() bool { return a.isGone(1) })
	a.mu.Lock()
	defer a.mu.Unlock()
	for who, crl := range a.delivered {
		if crl["default"] != 1 {
			t.Errorf("%s was handed CRL %d after exec", who, crl["default"])
		}
	}
}

func TestAProgramExecutedLaterWithTheSameRightsGoesOn(t *testing.T) {
	a := serve(t, Limits{}, webEntry()) // by uid only
	cmd, in, _ := start(t, a, "exec")
	self, _ := os.Readlink("/proc/self/exe")
	fmt.Fprintln(in)
	eventually(t, "it runs /bin/sleep", func() bool {
		exe, _ := os.Readlink("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/exe")
		return exe != self && exe != ""
	})
	crl := a.ca.crl(t, 2)
	a.change(func(v *upstream.View) { v.CRLs["default"] = crl })
	eventually(t, "CRL 2 is handed over", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, crl := range a.delivered {
			if crl["default"] == 2 {
				return true
			}
		}
		return false
	})
	if a.isGone(1) {
		t.Error("the stream was ended")
	}
}

func TestManyCallersOnOneStreamEachAreAllPushedTo(t *testing.T) {
	a := serve(t, Limits{}, webEntry())
	const callers = 50
	streams := make([]pb.SpiffeWorkloadAPI_FetchX509SVIDClient, callers)
	for i := range streams {
		s, err := a.client().FetchX509SVID(secure(t), &pb.X509SVIDRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		streams[i] = s
	}
	begun := time.Now()
	a.change(func(v *upstream.View) {
		v.Bundles[domain] = &nodev1.Bundle{TrustDomain: domain, X509Roots: [][]byte{a.ca.root.Raw, a.ca.root.Raw}, Jwks: v.Bundles[domain].Jwks}
	})
	for _, s := range streams {
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Svids[0].Bundle) != 2*len(a.ca.root.Raw) {
			t.Error("the old bundle was pushed")
		}
	}
	t.Logf("%d callers after %v", callers, time.Since(begun))
	if a.deliveries() != callers {
		t.Errorf("%d deliveries for %d callers", a.deliveries(), callers)
	}
}
