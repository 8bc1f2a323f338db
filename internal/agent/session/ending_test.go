package session

import (
	"fmt"
	"strings"
	"testing"
	"time"

	localv1 "github.com/legation-io/legation/api/local/v1"
	nodev1 "github.com/legation-io/legation/api/node/v1"
	"github.com/legation-io/legation/internal/agent/envoy"
	"github.com/legation-io/legation/internal/server/node"
	"github.com/legation-io/legation/internal/server/node/nodetest"
)

const peer = "spiffe://example.org/ns/default/sa/peer"

// connects has the Envoy tell of an accepted connection, and waits until that
// is known.
func (o *office) connects(e *proxy, id, serial, local, remote string) {
	o.t.Helper()
	_, err := fmt.Fprintln(e.in, id, serial, local, remote)
	must(o.t, err)
	nodetest.Eventually(o.t, "the connection of "+remote, func() bool {
		for _, c := range o.server.Connections(&localv1.ConnectionsRequest{}).Connections {
			if c.Remote == remote {
				return c.PeerId == id && c.PeerSerial == envoy.Serial(serial)
			}
		}
		return false
	})
}

func (o *office) revoke(id, spiffeID string, serials ...string) {
	o.plane.SetTrust(node.ScopeAll, "revocation", id, &nodev1.Revocation{Id: id, SpiffeId: spiffeID, Serials: serials, CrlNumber: 2, Authority: "default"})
}

func (p *parent) answer(m *localv1.SocketsClosed) {
	p.t.Helper()
	must(p.t, p.stream.Send(&localv1.SessionRequest{Message: &localv1.SessionRequest_Closed{Closed: m}}))
}

func TestARevocationEndsConnectionsInTwoRounds(t *testing.T) {
	o := newOffice(t)
	p, a, e := o.session()
	o.connects(e, peer, "00AB:CD", "10.0.0.1:15443", "10.0.0.2:1001") // as Envoy may write a serial
	o.connects(e, peer, "1234", "10.0.0.1:15443", "10.0.0.3:1002")
	o.revoke("r1", "", "abcd")

	first := p.told()
	if first.Id != "r1" || first.EnvoyPid != e.pid || first.Unnamed || len(first.Sockets) != 1 || first.Sockets[0].Remote != "10.0.0.2:1001" ||
		len(first.InboundPorts) != 1 || first.InboundPorts[0] != 15443 {
		t.Errorf("the first round is %v", first)
	}
	p.answer(&localv1.SocketsClosed{Id: "r1", Closed: 1})
	second := p.told()
	if second.Id != "r1" || !second.Unnamed || len(second.Keep) != 1 || second.Keep[0].Remote != "10.0.0.3:1002" {
		t.Errorf("the second round is %v", second)
	}
	p.answer(&localv1.SocketsClosed{Id: "r1", Closed: 2, Failures: []string{"one is stuck"}, Unnamed: true})
	nodetest.Eventually(t, "the control plane is told of both rounds", func() bool {
		ended := o.plane.Acks.Ended("r1")
		return len(ended) == 1 && ended[0].Closed == 3 && ended[0].Failed == 1 && ended[0].Subscriber == Subscriber(a.Session) && ended[0].TookNanos > 0
	})
	p.answer(&localv1.SocketsClosed{Id: "r1", Closed: 99, Unnamed: true}) // said twice, counted once
	p.answer(&localv1.SocketsClosed{Id: "never asked", Closed: 99})

	t.Run("one that was on its way while its peer was revoked is ended too", func(t *testing.T) {
		_, err := fmt.Fprintln(e.in, peer, "abcd", "10.0.0.1:15443", "10.0.0.2:1003")
		must(t, err)
		if late := p.told(); late.Id != "r1" || len(late.Sockets) != 1 || late.Sockets[0].Remote != "10.0.0.2:1003" || late.Unnamed {
			t.Errorf("told %v", late)
		}
	})
	t.Run("an identity's with whatever certificate", func(t *testing.T) {
		o.revoke("r2", peer, "ffff")
		if m := p.told(); m.Id != "r2" || len(m.Sockets) != 3 {
			t.Errorf("told %v", m)
		}
		p.told()
	})
	t.Run("the program's own end all", func(t *testing.T) {
		o.connects(e, "spiffe://example.org/ns/default/sa/other", "77", "10.0.0.1:15443", "10.0.0.4:1004")
		o.revoke("r3", web, "eeee")
		if m := p.told(); m.Id != "r3" || len(m.Sockets) != 4 {
			t.Errorf("told %v", m)
		}
		p.told()
	})
	nodetest.Eventually(t, "what was ended is counted once", func() bool {
		ended := o.plane.Acks.Ended("r1")
		return len(ended) == 1 && ended[0].Closed == 3
	})
	if n := len(o.plane.Acks.Ended("never asked")); n != 0 {
		t.Error("a parent makes up revocations")
	}
}

// After a time without the control plane many come at once, and the parent may
// be slow: none is lost.
func TestRevocationsThatComeAtOnceAreAllCarriedOut(t *testing.T) {
	o := newOffice(t)
	p, _, e := o.session()
	const many = 200 // more than the queue holds
	for n := range many {
		o.revoke(fmt.Sprint("r", n), "", fmt.Sprintf("%x", 0x1000+n))
	}
	o.connects(e, peer, "77", "10.0.0.1:15443", "10.0.0.2:1001") // the log is read while the parent is not
	first, second := map[string]int{}, map[string]int{}
	for deadline := time.Now().Add(time.Minute); len(second) < many; {
		if time.Now().After(deadline) {
			t.Fatalf("%d first rounds and %d second rounds of %d", len(first), len(second), many)
		}
		m := p.told()
		if !strings.HasPrefix(m.Id, "r") {
			t.Fatalf("told %v", m)
		}
		if m.Unnamed {
			second[m.Id]++
		} else {
			first[m.Id]++
		}
	}
	for id, n := range first {
		if n != 1 || second[id] != 1 {
			t.Errorf("%s: %d first rounds, %d second", id, n, second[id])
		}
	}
}

// One revocation after the other, each within the grace of the last: the
// second round of the first is not put off.
func TestAStreamOfRevocationsPutsNoSecondRoundOff(t *testing.T) {
	o := newOffice(t)
	p, _, _ := o.session()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(grace / 3)
		defer tick.Stop()
		for n := 0; n < 1000; n++ {
			o.revoke(fmt.Sprint("r", n), "", fmt.Sprintf("%x", 0x1000+n))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 100 {
		if m := p.told(); m.Unnamed {
			return
		}
	}
	t.Error("100 first rounds, and no second")
}

// Status and Connections are asked while sessions come and go.
func TestWhatIsTellableIsReadWhileSessionsBegin(t *testing.T) {
	o := newOffice(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				o.server.Status()
				o.server.Snapshot()
				o.server.Connections(&localv1.ConnectionsRequest{SpiffeId: web})
				o.server.Admins()
			}
		}
	}()
	program := o.program()
	for range 10 {
		p := o.open(&localv1.SessionRequest{Message: &localv1.SessionRequest_Start{Start: startOf(program)}})
		p.attested()
		p.leave()
		nodetest.Eventually(t, "it is over", o.empty)
	}
	close(stop)
	<-stopped
}

// An index is of the very map it was made from: that another lies at the same
// address later must not matter.
func TestTheIndexOfRevokedSerialsFollowsItsMap(t *testing.T) {
	var s revokedSerials
	for n := range 2000 {
		serial := fmt.Sprintf("%x", 0x100+n)
		m := map[string]*nodev1.Revocation{"r": {Serials: []string{serial}}}
		if id, ok := s.lookup(m, serial); !ok || id != "r" {
			t.Fatalf("round %d: %s is not found", n, serial)
		}
		if _, ok := s.lookup(m, "ff"); ok {
			t.Fatalf("round %d: what was never revoked is found", n)
		}
	}
}
