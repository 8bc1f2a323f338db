package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/sds"
	"github.com/legation-io/legation/internal/distribute"
	"github.com/legation-io/legation/internal/fault"
	"github.com/legation-io/legation/internal/server/node/nodetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestASessionFromItsStartToItsEnd(t *testing.T) {
	o := newOffice(t)
	p, a, e := o.session()
	if a.SpiffeId != web || a.Entry != "default/web" || len(a.Bootstrap) == 0 {
		t.Errorf("attested %v", a)
	}
	for path, want := range map[string]fs.FileMode{filepath.Dir(a.Socket): 0o700, a.Socket: 0o600} {
		if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %o", path, st.Mode(), err, want)
		}
	}
	for _, name := range []string{"default", "ROOTCA", "in"} {
		nodetest.Eventually(t, "its Envoy was given "+name, func() bool { return e.holds(name) })
	}
	list := o.server.Status()
	if len(list) != 1 || list[0].Subscriber != Subscriber(a.Session) || list[0].Pid != e.pid || list[0].SpiffeId != web || len(list[0].States) != 3 {
		t.Errorf("status: %v", list)
	}
	nodetest.Eventually(t, "the control plane knows what its Envoy holds", func() bool {
		subs := o.plane.Acks.Subscribers("node-1")
		return len(subs) == 1 && subs[0].Name == Subscriber(a.Session) && len(subs[0].States) == 3 && subs[0].CRLNumber == 1 && subs[0].Pending == 0
	})

	// A listener that is declared no more leaves both ledgers.
	o.plane.SetCompile(listeners("in", "more"))
	nodetest.Eventually(t, "one more listener", func() bool { return len(o.server.Status()[0].States) == 4 })
	o.plane.SetCompile(listeners("in"))
	nodetest.Eventually(t, "and it is gone", func() bool {
		return len(o.server.Status()[0].States) == 3 && len(o.plane.Acks.Subscribers("node-1")[0].States) == 3
	})

	silent, err := net.Dial("unix", a.Socket) // does not hold the end up
	must(t, err)
	defer silent.Close()
	begun := time.Now()
	must(t, p.stream.CloseSend())
	if err := p.end(); status.Code(err) != codes.Unknown && !errors.Is(err, context.Canceled) && err.Error() != "EOF" {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("ended after %s", took)
	}
	if left, _ := os.ReadDir(o.server.p.RunDir); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
	nodetest.Eventually(t, "its Envoy is disconnected", func() bool { return e.has("end") })
	nodetest.Eventually(t, "nothing of it is left", func() bool {
		return len(o.server.Status()) == 0 && len(o.plane.Acks.Subscribers("node-1")) == 0 &&
			len(o.engine.List([]distribute.Scope{distribute.Scope("session/" + a.Session), distribute.Scope("session/" + a.Session + "/secrets")}, sds.TypeSecret)) == 0
	})
}

func TestWhoIsRefusedASession(t *testing.T) {
	o := newOffice(t)
	mine := o.program()
	nephew := o.nephew()
	for _, tt := range []struct {
		name  string
		start func(*localv1.SessionStart) *localv1.SessionRequest
		code  codes.Code
		says  string
	}{
		{"whoever does not begin with the start", func(*localv1.SessionStart) *localv1.SessionRequest {
			return &localv1.SessionRequest{Message: &localv1.SessionRequest_Program{}}
		}, codes.InvalidArgument, "the first message"},
		{"a program of another trust domain", edit(func(s *localv1.SessionStart) { s.TrustDomain = "other.org" }), codes.InvalidArgument, "not other.org"},
		{"who brings a process that is not its child", edit(func(s *localv1.SessionStart) { s.ChildPid = nephew }), codes.PermissionDenied, "is not a child of the caller"},
		{"who brings the first process", edit(func(s *localv1.SessionStart) { s.ChildPid = 1 }), codes.PermissionDenied, "is not a child of the caller"},
		{"who brings no process", edit(func(s *localv1.SessionStart) { s.ChildPid = 0 }), codes.Unknown, "attest the program"},
		{"who brings itself", edit(func(s *localv1.SessionStart) { s.ChildPid = int32(os.Getpid()) }), codes.PermissionDenied, "is not a child of the caller"},
		{"a child that does not hold what it will execute", edit(func(s *localv1.SessionStart) { s.ExecFd = 77 }), codes.Unknown, ""},
		{"who asks for an identity that is not the program's", edit(func(s *localv1.SessionStart) { s.SpiffeId = "spiffe://example.org/ns/default/sa/db" }), codes.PermissionDenied, "it may be " + web},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := o.open(tt.start(startOf(mine)))
			err := p.end()
			if tt.code == codes.Unknown && status.Code(err) == codes.OK || tt.code != codes.Unknown && status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("ended with %v, want %s and %q", err, tt.code, tt.says)
			}
		})
	}
	t.Run("a program that several identities match, until it chooses", func(t *testing.T) {
		db := "spiffe://example.org/ns/default/sa/db"
		o.plane.SetEntry("node-1", entry("db", db))
		nodetest.Eventually(t, "the second entry", func() bool { return o.matching() == 2 })
		if err := o.open(edit(func(*localv1.SessionStart) {})(startOf(mine))).end(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "--spiffe-id") {
			t.Errorf("ended with %v", err)
		}
		p := o.open(edit(func(s *localv1.SessionStart) { s.SpiffeId = db })(startOf(mine)))
		if a := p.attested(); a.SpiffeId != db {
			t.Errorf("chose db and is %s", a.SpiffeId)
		}
		p.leave()
		o.plane.RemoveEntry("node-1", "default/db")
		nodetest.Eventually(t, "both are gone", func() bool { return o.empty() && o.matching() == 1 })
	})
	t.Run("one session more than the limit", func(t *testing.T) {
		for range 3 {
			o.open(edit(func(*localv1.SessionStart) {})(startOf(o.program()))).attested()
		}
		if err := o.open(edit(func(*localv1.SessionStart) {})(startOf(mine))).end(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("ended with %v", err)
		}
	})
}

// nephew is a process of another parent.
func (o *office) nephew() int32 {
	o.t.Helper()
	c := exec.Command("sh", "-c", "sleep 60 3</bin/true & echo $!; wait")
	out, err := c.StdoutPipe()
	must(o.t, err)
	must(o.t, c.Start())
	var pid int32
	_, err = fmt.Fscan(out, &pid)
	must(o.t, err)
	o.t.Cleanup(func() { _ = syscall.Kill(int(pid), syscall.SIGKILL); _ = c.Wait() })
	return pid
}

func edit(f func(*localv1.SessionStart)) func(*localv1.SessionStart) *localv1.SessionRequest {
	return func(s *localv1.SessionStart) *localv1.SessionRequest {
		f(s)
		return &localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: s}}
	}
}

func TestThePrivateSocketIsForTheSessionsEnvoyAlone(t *testing.T) {
	o := newOffice(t)
	p := o.open(edit(func(*localv1.SessionStart) {})(startOf(o.program())))
	a := p.attested()
	denied := func(t *testing.T, err error) {
		t.Helper()
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("answered %v", err)
		}
	}
	t.Run("not for another process of its user", func(t *testing.T) { // this one: a parent, and no child
		conn, err := grpc.NewClient("unix://"+a.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(t, err)
		defer conn.Close()
		ads, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
		must(t, err)
		_, err = ads.Recv()
		denied(t, err)
		als, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
		must(t, err)
		denied(t, als.RecvMsg(&accesslogv3.StreamAccessLogsResponse{}))
	})
	t.Run("not for another user, by the file's mode", func(t *testing.T) {
		e := o.envoy(a.Socket, 65534, "")
		nodetest.Eventually(t, "it is refused", func() bool { return e.has("end") })
		if s := strings.Join(e.saying(), "\n"); strings.Contains(s, "held") || !strings.Contains(s, "permission denied") {
			t.Errorf("it says %q", s)
		}
	})
	t.Run("not for another user, whatever the file's mode", func(t *testing.T) {
		must(t, os.Chmod(filepath.Dir(a.Socket), 0o755))
		must(t, os.Chmod(a.Socket, 0o666))
		e := o.envoy(a.Socket, 65534, "")
		nodetest.Eventually(t, "it is refused", func() bool { return e.has("end") })
		if s := strings.Join(e.saying(), "\n"); strings.Contains(s, "held") || !strings.Contains(s, "not this session's Envoy") {
			t.Errorf("it says %q", s)
		}
	})
	if len(o.server.Status()[0].States) != 0 {
		t.Error("the ledger tells of somebody")
	}
}

func TestARefusedConfigurationIsToldAndTheNextCounts(t *testing.T) {
	o := newOffice(t)
	o.plane.SetCompile(func(string, *nodev1.Subject) ([]*distribute.Resource, error) {
		return nil, fault.New(fault.Invalid, "nothing is called featurestore")
	})
	p := o.open(edit(func(*localv1.SessionStart) {})(startOf(o.program())))
	a := p.attested()
	p.warned("nothing is called featurestore")
	o.envoy(a.Socket, 0, "")
	o.plane.SetCompile(listeners("in"))
	p.readiness()
}

// Envoy asks for no secret where it has no listener: what never comes is not
// waited for.
func TestASessionThatAsksForNoPortIsReadyAtOnce(t *testing.T) {
	o := newOffice(t)
	o.plane.SetCompile(listeners())
	p := o.open(edit(func(s *localv1.SessionStart) { s.Inbound = nil })(startOf(o.program())))
	if a := p.attested(); a.SpiffeId != web {
		t.Errorf("attested %v", a)
	}
	p.readiness()
}

func TestWhatItsEnvoyRefusesIsTold(t *testing.T) {
	o := newOffice(t)
	p := o.open(edit(func(*localv1.SessionStart) {})(startOf(o.program())))
	a := p.attested()
	o.envoy(a.Socket, 0, typeListener)
	p.warned("Envoy refuses in: this Envoy does not like it")
	nodetest.Eventually(t, "the control plane is told", func() bool {
		subs := o.plane.Acks.Subscribers("node-1")
		return len(subs) == 1 && subs[0].Error == "this Envoy does not like it"
	})
	select {
	case m := <-p.heard:
		if m.GetReady() != nil {
			t.Error("it is ready all the same")
		}
	default:
	}
}

func TestWhatRunsMustBeWhatWasAttested(t *testing.T) {
	o := newOffice(t)
	p, _, _ := o.session()
	// The child is cat still, and has never become /bin/true.
	must(t, p.stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Program{Program: &localv1.ProgramStarted{}}}))
	if err := p.end(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "what runs is not what was attested") {
		t.Errorf("ended with %v", err)
	}
}

// Trust stays and the certificate goes; the session lives on until the block is
// lifted.
func TestAnIdentityIsTakenAwayAndComesBack(t *testing.T) {
	o := newOffice(t)
	p, _, e := o.session()
	blocked := entry("web", web)
	blocked.Blocked = true
	o.plane.SetEntry("node-1", blocked)
	p.warned("the identity was taken away")
	nodetest.Eventually(t, "its Envoy holds no certificate", func() bool { return !e.holds("default") })
	if !e.holds("ROOTCA") {
		t.Error("its Envoy lost what it verifies peers by")
	}
	o.plane.SetEntry("node-1", entry("web", web))
	nodetest.Eventually(t, "its Envoy holds a certificate again", func() bool { return e.holds("default") })
}

func TestAnAgentThatEndsLeavesItsSessionsToTheNext(t *testing.T) {
	o := newOffice(t)
	_, a, _ := o.session()
	o.server.Close()
	o.stop()
	for _, path := range []string{filepath.Dir(a.Socket), o.server.recordPath(a.Session)} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
}

// Many sessions that come and go leave no descriptor behind.
func TestSessionsLeakNothing(t *testing.T) {
	o := newOffice(t)
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	program := o.program()
	once := func(bad bool) {
		s := startOf(program)
		if bad {
			s.SpiffeId = "spiffe://example.org/nobody"
		}
		p := o.open(&localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: s}})
		if !bad {
			p.attested()
		} else if err := p.end(); err == nil {
			t.Error("not refused")
		}
		p.leave()
	}
	once(true)
	once(false)
	nodetest.Eventually(t, "the first is over", func() bool { return len(o.server.Status()) == 0 })
	before := files()
	for n := range 30 {
		once(n%2 == 0)
		nodetest.Eventually(t, fmt.Sprint("round ", n), o.empty)
	}
	nodetest.Eventually(t, "no descriptor is left", func() bool { return files() <= before })
}
