package workload

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

type healthServer struct {
	grpc_health_v1.UnimplementedHealthServer
	pid chan int32
}

func (h *healthServer) Watch(_ *grpc_health_v1.HealthCheckRequest, s grpc_health_v1.Health_WatchServer) error {
	c, ok := FromContext(s.Context())
	if !ok {
		h.pid <- -1
		return nil
	}
	h.pid <- c.PID()
	<-c.Done()
	return nil
}

func serve(t *testing.T, a *Attestor) (*healthServer, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &healthServer{pid: make(chan int32, 1)}
	s := grpc.NewServer(grpc.Creds(NewCredentials(a)), grpc.ConnectionTimeout(time.Minute))
	grpc_health_v1.RegisterHealthServer(s, h)
	ended := make(chan struct{})
	go func() { s.Serve(l); close(ended) }()
	t.Cleanup(func() { s.Stop(); <-ended })
	return h, socket
}

func TestHandlersKnowTheirCaller(t *testing.T) {
	h, socket := serve(t, running(t))
	before := openFiles(t)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if pid := <-h.pid; int(pid) != os.Getpid() {
		t.Errorf("pid %d, want %d", pid, os.Getpid())
	}
	conn.Close()
	eventually(t, "the pidfd is closed with the connection", func() bool { return openFiles(t) <= before })
}

func TestA03FileDescriptorsStayFlatOver10000CallersThatConnectAndDie(t *testing.T) {
	a := running(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	var accepted atomic.Int64
	ended := make(chan struct{})
	go func() { // what a gRPC server does with a connection
		defer close(ended)
		creds := NewCredentials(a)
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			n := accepted.Add(1)
			conn, info, err := creds.ServerHandshake(raw)
			if err != nil {
				continue
			}
			c := info.(AuthInfo).Caller
			c.Done()
			if n%10 == 0 {
				c.Selectors(t.Context())
			}
			conn.Close()
		}
	}()
	// Most are connections that end at once; a few hundred are processes.
	for i := range 9_700 {
		conn, err := net.Dial("unix", socket)
		for errors.Is(err, syscall.EAGAIN) { // the backlog is full
			runtime.Gosched()
			conn, err = net.Dial("unix", socket)
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conn.Close()
	}
	processes := make(chan struct{}, 2)
	for range 300 {
		processes <- struct{}{}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "WORKLOAD_HELPER=connect-and-die", "WORKLOAD_SOCKET="+socket)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { cmd.Wait(); <-processes }()
	}
	for range cap(processes) {
		processes <- struct{}{}
	}
	eventually(t, "10,000 callers were looked at", func() bool { return accepted.Load() == 10_000 })
	eventually(t, "all descriptors are given back", func() bool { return openFiles(t) <= before })
	l.Close()
	<-ended
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.watched) != 0 {
		t.Errorf("%d dead callers are still watched", len(a.watched))
	}
}
